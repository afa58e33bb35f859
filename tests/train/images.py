"""A folder in ImageNet's layout with a handful of images, each class a colour of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("n01440764", "n02084071", "n03000684")


def write_folder(root: Path, train: int = 8, test: int = 3, size: tuple[int, int] = (80, 60)) -> Path:
    """JPEGs of width × height `size`, some of them grey, under train/ and val/."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", test)):
        for label, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 80, (*size[::-1], 3), dtype=np.uint8)
                pixels[..., label] += 150
                image = Image.fromarray(pixels)
                (image.convert("L") if index == 0 else image).save(folder / f"{index:03}.JPEG")
    return root
