"""Data sets by recipe: `load(spec, path)` gives three splits of uint8 images and labels.

dataset.py  the splits, and what becomes of an image on its way into the network
glyphs.py   the built-in one: 36 characters rendered from fonts, whole families unseen in training
npz.py      anything in an npz file: x_train, y_train, x_test, y_test
folder.py   ImageNet's layout, read when it is needed: train/CLASS/*.jpg, val/CLASS/*.jpg
"""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from ...records import DataSpec
from .dataset import Dataset, Inputs, Split
from .folder import load_folder
from .glyphs import load_glyphs
from .npz import load_npz

__all__ = ["Dataset", "Inputs", "Split", "load"]


def load(spec: DataSpec, path: Path | None = None) -> Dataset:
    """The data a recipe asks for; `path` (the command's --data) goes before the recipe's own."""
    if spec.name == "glyphs":
        if path is not None:
            raise InputError("this recipe uses the built-in glyphs and takes no --data; use data.name = 'npz'")
        return load_glyphs(spec)
    chosen = path or (Path(spec.path) if spec.path else None)
    if chosen is None:
        what = "file: give --data FILE.npz" if spec.name == "npz" else "folder: give --data FOLDER with train/ and val/"
        raise InputError(f"this recipe needs a data {what}")
    return load_npz(spec, chosen) if spec.name == "npz" else load_folder(spec, chosen)
