#!/usr/bin/env python3
"""Cuts the embedded sample out of Fashion-MNIST: the first images of every class, in the files' own order.

    make.py [FOLDER_OF_FASHION_MNIST]

Writes the four gzip-compressed IDX files beside this script and prints their SHA-256. The same input and zlib give
the same bytes: no time stamp, no file name, level 9.
"""

import gzip
import hashlib
import io
import pathlib
import struct
import sys

PER_CLASS = {"train": 1000, "t10k": 200}
CLASSES = 10
DEFAULT_SOURCE = "/usr/share/datasets/fashion-mnist"


def read_idx(path, magic, dimensions):
    """The sizes and the bytes of an IDX file."""
    raw = gzip.decompress(path.read_bytes())
    header = struct.unpack_from(f">{1 + dimensions}I", raw)
    if header[0] != magic:
        sys.exit(f"{path}: the magic number is {header[0]:#x}, expected {magic:#x}")
    return header[1:], raw[4 * (1 + dimensions):]


def compress(data):
    out = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=out, mtime=0) as file:
        file.write(data)
    return out.getvalue()


def main():
    source = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_SOURCE)
    target = pathlib.Path(__file__).resolve().parent
    for split, per_class in PER_CLASS.items():
        (count, height, width), pixels = read_idx(source / f"{split}-images-idx3-ubyte.gz", 0x803, 3)
        (label_count,), labels = read_idx(source / f"{split}-labels-idx1-ubyte.gz", 0x801, 1)
        if label_count != count:
            sys.exit(f"{split}: {count} images but {label_count} labels")
        taken = [0] * CLASSES
        chosen = []
        for index, label in enumerate(labels):
            if taken[label] < per_class:
                taken[label] += 1
                chosen.append(index)
        if taken != [per_class] * CLASSES:
            sys.exit(f"{split}: found {taken} images of the classes, expected {per_class} of each")
        size = height * width
        images = b"".join(pixels[i * size:(i + 1) * size] for i in chosen)
        files = {
            f"{split}-images-idx3-ubyte.gz": struct.pack(">4I", 0x803, len(chosen), height, width) + images,
            f"{split}-labels-idx1-ubyte.gz": struct.pack(">2I", 0x801, len(chosen)) + bytes(labels[i] for i in chosen),
        }
        for name, data in files.items():
            packed = compress(data)
            (target / name).write_bytes(packed)
            print(f"{hashlib.sha256(packed).hexdigest()}  {name}  ({len(packed)} bytes)")


if __name__ == "__main__":
    main()
