"""Images from an npz file with the arrays x_train, y_train, x_test, y_test (and classes, if it has any)."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...records import DataSpec
from .dataset import Dataset, Split

ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def load_npz(spec: DataSpec, path: Path) -> Dataset:
    """Read `path`: uint8 images N×H×W, N×H×W×C or N×C×H×W, whole-number labels from 0; no pickled objects."""
    arrays = _read(path)
    x_train, x_test = (_images(arrays[key], key, path) for key in ("x_train", "x_test"))
    y_train = _labels(arrays["y_train"], len(x_train), "y_train", path)
    y_test = _labels(arrays["y_test"], len(x_test), "y_test", path)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise InputError(f"{path}: x_train images are {x_train.shape[1:]}, x_test {x_test.shape[1:]}; must agree")
    kept = len(x_train) - max(1, round(len(x_train) * spec.validation_share))
    if kept < 1:
        raise InputError(f"{path}: {len(x_train)} training images leave none beside the validation split")
    class_count = int(max(y_train.max(), y_test.max())) + 1
    named = arrays.get("classes")
    classes = tuple(map(str, named.tolist())) if named is not None else tuple(map(str, range(class_count)))
    if len(classes) < class_count:
        raise InputError(f"{path}: label {class_count - 1} found, but only {len(classes)} classes are named")
    return Dataset(
        name=path.stem,
        classes=classes,
        train=Split(x_train[:kept], y_train[:kept]),
        validation=Split(x_train[kept:], y_train[kept:], first=kept),
        test=Split(x_test, y_test),
        mean=tuple(spec.mean),
        std=tuple(spec.std),
    )


def _read(path: Path) -> dict[str, NDArray]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            missing = [key for key in ARRAYS if key not in stored]
            if missing:
                raise InputError(f"{path}: no array '{missing[0]}'; expected {', '.join(ARRAYS)}")
            return {key: stored[key] for key in stored.files if key in (*ARRAYS, "classes")}
    except OSError as error:
        raise InputError(f"cannot read data {path}: {error.strerror or error}; check the path") from error
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise InputError(f"{path}: expected an npz file of plain arrays ({str(error)[:80]})") from error


def _images(array: NDArray, key: str, path: Path) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or 0 in array.shape:
        raise InputError(
            f"{path}: {key} must be non-empty uint8 images N×H×W or N×H×W×C, found {array.dtype} {array.shape}"
        )
    if array.ndim == 3:
        return array[:, None]
    channels_last = array.shape[3] in (1, 3)
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if channels_last else array


def _labels(array: NDArray, count: int, key: str, path: Path) -> NDArray[np.int64]:
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise InputError(f"{path}: {key} must be {count} whole numbers, found {array.dtype} {array.shape}")
    labels = array.astype(np.int64)
    if labels.min() < 0:
        raise InputError(f"{path}: {key} holds the label {labels.min()}; labels start at 0")
    return labels
