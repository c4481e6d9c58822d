"""Time that Pillow (libjpeg-turbo), torchvision and timm take to decode an image file and to prepare it, on one thread.

    python bench/peers/images.py FILES…
    python bench/peers/images.py --totals FOLDER

The figures are those of `cargo bench -p stridenet --bench images` with the same arguments.
"""

import io
import json
import statistics
import sys
import time
from pathlib import Path

import PIL
import torch
from PIL import Image, features
from timm.data.transforms_factory import transforms_imagenet_eval

CALLS = 30


def timed(call):
    """Milliseconds of a call, and its result."""
    start = time.perf_counter()
    result = call()
    return (time.perf_counter() - start) * 1e3, result


def times(call):
    call()
    found = [timed(call)[0] for _ in range(CALLS)]
    return f"{statistics.median(found):.3f} ({min(found):.3f})"


def decode(content):
    """The RGB picture. What already is one is not copied, as convert would."""
    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def totals(folder, fit, normal):
    """Mean times over all images of a folder, one call each."""
    files = sorted(path for path in folder.rglob("*") if path.suffix == ".jpg")
    sums = [0.0, 0.0, 0.0]
    for file in files:
        content = file.read_bytes()
        decoding, picture = timed(lambda: decode(content))
        fitting, fitted = timed(lambda: fit(picture))
        normalising, _ = timed(lambda: normal(fitted))
        sums = [total + ms for total, ms in zip(sums, (decoding, fitting, normalising))]
    names = ("decode_ms", "resize_crop_ms", "normalise_ms")
    means = {name: total / max(len(files), 1) for name, total in zip(names, sums)}
    version = f"Pillow {PIL.__version__} with libjpeg-turbo {features.version('libjpeg_turbo')}"
    print(json.dumps({"version": version, "files": len(files), **means}))


def main():
    torch.set_num_threads(1)
    resize, crop, tensor, normalise = transforms_imagenet_eval(
        img_size=224, crop_pct=0.875, interpolation="bicubic"
    ).transforms

    def fit(picture):
        return crop(resize(picture))

    def normal(fitted):
        return normalise(tensor(fitted))

    if sys.argv[1:2] == ["--totals"]:
        return totals(Path(sys.argv[2]), fit, normal)
    print(f"{'file':28} {'decode ms':>18} {'resize, crop ms':>18} {'normalise ms':>18}")
    for file in map(Path, sys.argv[1:]):
        content = file.read_bytes()
        picture = decode(content)
        fitted = fit(picture)
        cells = (times(lambda: decode(content)), times(lambda: fit(picture)), times(lambda: normal(fitted)))
        print(f"{file.name:28} {cells[0]:>18} {cells[1]:>18} {cells[2]:>18}")


if __name__ == "__main__":
    main()
