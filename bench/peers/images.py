"""Time that Pillow (libjpeg-turbo), torchvision and timm take to decode an image file and to prepare it, on one thread.

    python bench/peers/images.py FILES…

The columns are those of `cargo bench -p stridenet --bench images -- FILES…`.
"""

import io
import statistics
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval

CALLS = 30


def times(call):
    call()
    found = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        found.append((time.perf_counter() - start) * 1e3)
    return f"{statistics.median(found):.3f} ({min(found):.3f})"


def main():
    torch.set_num_threads(1)
    resize, crop, tensor, normalise = transforms_imagenet_eval(
        img_size=224, crop_pct=0.875, interpolation="bicubic"
    ).transforms
    print(f"{'file':28} {'decode ms':>18} {'resize, crop ms':>18} {'normalise ms':>18}")
    for file in map(Path, sys.argv[1:]):
        content = file.read_bytes()
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        fitted = crop(resize(picture))
        cells = (
            times(lambda: Image.open(io.BytesIO(content)).convert("RGB")),
            times(lambda: crop(resize(picture))),
            times(lambda: normalise(tensor(fitted))),
        )
        print(f"{file.name:28} {cells[0]:>18} {cells[1]:>18} {cells[2]:>18}")


if __name__ == "__main__":
    main()
