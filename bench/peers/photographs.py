"""Makes JPEG files that are as photographs are for a decoder: `photographs.py FOLDER TRAIN VAL CLASSES QUALITY`.

A picture is a heap of leaves (Lee, Mumford and Huang 2001): ellipses of all sizes that hide each other, each with a colour, a
gradient and a texture of its own whose spectrum falls as 1/f, seen through a lens that is not quite sharp by a sensor with a
little noise. So it has edges, smooth and busy regions, and the spectrum of natural images. Files are 500 x 375, 4:2:0, written
by Pillow; the same numbers give the same pixels.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

WIDTH, HEIGHT = 500, 375
LEAVES = 320
RADII = (6.0, 220.0)
TEXTURES = 4
SEED = 20


def texture(random: np.random.Generator, falloff: float) -> np.ndarray:
    """Noise `[HEIGHT, WIDTH]` of variance 1 whose amplitudes fall as frequency to the power of -falloff."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None, :])
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(random.standard_normal((HEIGHT, WIDTH), dtype=np.float32)) * frequency**-falloff
    spectrum[0, 0] = 0.0
    noise = np.fft.irfft2(spectrum, (HEIGHT, WIDTH))
    return (noise / noise.std()).astype(np.float32)


def photograph(index: int) -> Image.Image:
    """The picture of a number."""
    random = np.random.default_rng([SEED, index])
    textures = [texture(random, random.uniform(0.8, 1.8)) for _ in range(TEXTURES)]
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    light = 1 + 0.15 * textures[0]
    picture = np.full((HEIGHT, WIDTH, 3), random.uniform(60, 180) + random.normal(0, 28, 3), np.float32)
    # Radii with a density of r**-3, as many large leaves as small ones by area; later leaves lie on top.
    low, high = (radius**-2 for radius in RADII)
    for radius in (random.uniform(high, low, LEAVES)) ** -0.5:
        centre = random.uniform((0, 0), (HEIGHT, WIDTH))
        turn, proportion = random.uniform(0, np.pi), random.uniform(0.4, 1.0)
        colour = random.uniform(20, 235) + random.normal(0, 28, 3)
        slope, contrast = random.normal(0, 25 / radius, 2), random.gamma(2.0, 5.0)
        grain = textures[random.integers(TEXTURES)]
        top, left = (max(int(middle - radius), 0) for middle in centre)
        bottom, right = int(centre[0] + radius) + 2, int(centre[1] + radius) + 2
        part = np.s_[top:bottom, left:right]
        down, across = rows[part] - centre[0], columns[part] - centre[1]
        along = np.cos(turn) * across + np.sin(turn) * down
        beside = (np.cos(turn) * down - np.sin(turn) * across) / proportion
        inside = along**2 + beside**2 < radius**2
        shade = slope[0] * down + slope[1] * across + contrast * grain[part]
        picture[part][inside] = (colour + shade[..., None])[inside]
    picture = np.clip(picture * light[..., None], 0, 255).astype(np.uint8)
    blurred = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(random.uniform(0.4, 1.0)))
    seen = np.asarray(blurred, np.float32) + random.normal(0, 1.5, picture.shape)
    return Image.fromarray(np.clip(seen + 0.5, 0, 255).astype(np.uint8))


def main() -> None:
    folder = Path(sys.argv[1])
    train, val, classes, quality = map(int, sys.argv[2:])
    for index in range(train + val):
        split = "train" if index < train else "val"
        path = folder / split / f"class{index % classes}" / f"{index:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(index).save(path, quality=quality, subsampling="4:2:0")


if __name__ == "__main__":
    main()
