"""Data for calibration and metrics, as the model takes it: an npz file or a folder of images.

npz     arrays by the model's input names; or images (`images`, `x`, `x_test`) N×H×W, N×H×W×C or N×C×H×W; labels
        in `labels`, `y` or `y_test`
folder  one subfolder a class, in the names' order (by number where all are numbers); or labels.csv with lines
        `file,label`; or images alone, without labels
Images of 8 bits enter as (x / 255 − mean) / std, or as they are where the model takes 8 bits; other arrays as
they are. Images are read batch by batch.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import InputError
from ..runtime.inputs import graph_inputs, read_arrays

LABELS_FILE = "labels.csv"
_LABEL_KEYS = ("labels", "y", "y_test")
_IMAGE_KEYS = ("images", "x", "x_test")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"}
_MODES = {1: "L", 3: "RGB"}
_LARGEST_LABELS_BYTES = 1 << 28

Feed = dict[str, NDArray]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Preprocess:
    """From 8-bit pixels to the model's input.

    `mean` and `std` are one number a channel, in the model's channel order, or one for all. `crop` is the centre
    square's share of the shorter side that is kept before resizing to the model's size; None keeps all.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = None
    crop: float | None = None
    colors: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"


@dataclass(frozen=True)
class Samples:
    """`count` inputs, `read(start, stop)` some of them; class labels from 0, or None where there are none."""

    name: str
    count: int
    labels: NDArray[np.int64] | None
    read: Callable[[int, int], Feed]

    def batches(self, size: int) -> Iterator[tuple[Feed, slice]]:
        """All inputs in order, `size` at a time."""
        for start in range(0, self.count, size):
            stop = min(start + size, self.count)
            yield self.read(start, stop), slice(start, stop)


def every(samples: Samples, step: int, first: int) -> Samples:
    """One input of `step`, from `first` on."""

    def read(start: int, stop: int) -> Feed:
        feed = samples.read(first + start * step, min(first + (stop - 1) * step + 1, samples.count))
        return {name: array[::step] for name, array in feed.items()}

    labels = None if samples.labels is None else samples.labels[first : samples.count : step]
    return Samples(samples.name, len(range(first, samples.count, step)), labels, read)


def load(path: Path, proto: onnx.ModelProto, how: Preprocess | None = None) -> Samples:
    """The data at `path` for the inputs of `proto`. Raises InputError, one line, for data that does not fit."""
    how = how or Preprocess()
    if any(value == 0 for value in how.std):
        raise InputError("--std: expected numbers other than 0, which would divide by zero")
    samples = _from_folder(path, proto, how) if path.is_dir() else _from_npz(path, proto, how)
    if samples.count == 0:
        raise InputError(f"{path}: expected data, found none")
    if samples.labels is not None and len(samples.labels) != samples.count:
        labels = len(samples.labels)
        raise InputError(f"{path}: expected a label each, found {samples.count} inputs and {labels} labels")
    return samples


def first(path: Path, most: int, how: Preprocess, proto: onnx.ModelProto) -> Samples:
    """The first `most` of them."""
    samples = load(path, proto, how)
    return replace(samples, count=min(samples.count, most))


# --- arrays -------------------------------------------------------------------------------------------------


def _from_npz(path: Path, proto: onnx.ModelProto, how: Preprocess) -> Samples:
    arrays = read_arrays(path)
    labels = next((_labels(arrays[key], path) for key in _LABEL_KEYS if key in arrays), None)
    names = [value.name for value in graph_inputs(proto)]
    if all(name in arrays for name in names):
        feed = {name: arrays[name] for name in names}
    else:
        feed = {names[0] if names else "": _image_array(path, arrays, names)}
    counts = {len(array) if array.ndim else 0 for array in feed.values()}
    if len(counts) != 1:
        raise InputError(f"{path}: expected arrays of one length, found {sorted(counts)}")

    def read(start: int, stop: int) -> Feed:
        return {name: _as_input(array[start:stop], proto, name, how) for name, array in feed.items()}

    return Samples(path.stem, counts.pop(), labels, read)


def _image_array(path: Path, arrays: Mapping[str, NDArray], names: Sequence[str]) -> NDArray:
    key = next((key for key in _IMAGE_KEYS if key in arrays), None)
    if key is None or len(names) != 1:
        wanted = ", ".join(names) + (f" (or {', '.join(_IMAGE_KEYS)})" if len(names) == 1 else "")
        raise InputError(f"{path}: expected the arrays {wanted}, found {', '.join(sorted(arrays)) or 'none'}")
    return arrays[key]


def _labels(array: NDArray, path: Path) -> NDArray[np.int64]:
    if array.ndim != 1 or array.dtype.kind not in "iu" or (array.size and array.min() < 0):
        raise InputError(f"{path}: expected labels as whole numbers from 0, found {array.dtype} {array.shape}")
    return array.astype(np.int64)


def _as_input(array: NDArray, proto: onnx.ModelProto, name: str, how: Preprocess) -> NDArray:
    kind, dims = _wanted(proto, name)
    if array.dtype == np.uint8 and kind.kind == "f":
        images = array[..., None] if array.ndim == 3 else array
        channels_last = images.ndim == 4 and images.shape[3] in _MODES and images.shape[1] not in _MODES
        pixels = images if channels_last else images.transpose(0, 2, 3, 1) if images.ndim == 4 else images
        array = _normalized(pixels, how) if pixels.ndim == 4 else pixels
    fits = len(dims) == array.ndim and all(
        want in (None, have) for want, have in zip(dims[1:], array.shape[1:], strict=True)
    )
    if not fits:
        shape = ["n", *("?" if size is None else size for size in dims[1:])]
        raise InputError(f"input '{name}': expected data of shape {shape}, found {list(array.shape)}; see --layout")
    return np.ascontiguousarray(array, kind)


def _wanted(proto: onnx.ModelProto, name: str) -> tuple[np.dtype, list[int | None]]:
    tensor = next(value.type.tensor_type for value in graph_inputs(proto) if value.name == name)
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type), dims
    except KeyError as error:
        raise InputError(f"input '{name}': expected a tensor of numbers; use --metric for anything else") from error


# --- images -------------------------------------------------------------------------------------------------


def _from_folder(path: Path, proto: onnx.ModelProto, how: Preprocess) -> Samples:
    values = graph_inputs(proto)
    if len(values) != 1:
        raise InputError(f"{path}: a folder of images feeds one input, the model has {len(values)}; use an npz file")
    name = values[0].name
    kind, dims = _wanted(proto, name)
    files, labels = _listed(path)
    channels, size = _geometry(dims, how, name)
    cut = None if how.crop is None else partial(centre, share=how.crop)

    def read(start: int, stop: int) -> Feed:
        pixels = np.stack([read_image(file, channels, size, cut) for file in files[start:stop]])
        batch = _normalized(pixels, how) if kind.kind == "f" else _arranged(pixels, how)
        return {name: np.ascontiguousarray(batch, kind)}

    return Samples(path.name, len(files), labels, read)


def _listed(path: Path) -> tuple[list[Path], NDArray[np.int64] | None]:
    if (path / LABELS_FILE).is_file():
        return _from_csv(path)
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = [(image, folder.name) for folder in folders for image in images_in(folder)]
    if found:
        names = _numbered([folder.name for folder in folders])
        return [image for image, _ in found], np.array([names[label] for _, label in found], np.int64)
    return images_in(path), None


def images_in(folder: Path) -> list[Path]:
    """The images that lie in a folder, by name."""
    return sorted(entry for entry in folder.iterdir() if entry.suffix.lower() in _SUFFIXES and entry.is_file())


def _numbered(names: Sequence[str]) -> dict[str, int]:
    """Class names with their numbers: themselves where all are numbers, else their place in sorted order."""
    distinct = sorted(set(names))
    if all(name.isascii() and name.isdecimal() and len(name) < 10 for name in distinct):
        return {name: int(name) for name in distinct}
    return {name: index for index, name in enumerate(distinct)}


def _from_csv(path: Path) -> tuple[list[Path], NDArray[np.int64]]:
    source = path / LABELS_FILE
    try:
        if source.stat().st_size > _LARGEST_LABELS_BYTES:
            raise InputError(f"{source}: larger than {_LARGEST_LABELS_BYTES >> 20} MiB; this is no list of labels")
        rows = [row for row in csv.reader(source.read_text(encoding="utf-8-sig").splitlines()) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"cannot read {source}: {error}; expected lines of file,label") from error
    if any(len(row) != 2 for row in rows):
        raise InputError(f"{source}: expected lines of file,label, found {','.join(rows[0])[:60]!r}")
    if rows and not (path / rows[0][0].strip()).is_file():
        rows = rows[1:]  # a header
    files = [path / file.strip() for file, _ in rows]
    outside = next((file for file in files if not file.resolve().is_relative_to(path.resolve())), None)
    missing = outside or next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise InputError(f"{source}: no image {str(missing.relative_to(path))[:80]!r} in that folder")
    names = _numbered([label.strip() for _, label in rows])
    return files, np.array([names[label.strip()] for _, label in rows], np.int64)


def _geometry(dims: list[int | None], how: Preprocess, name: str) -> tuple[int, tuple[int, int]]:
    """Channels, and height × width, of the images that the model takes."""
    if len(dims) != 4:
        raise InputError(f"input '{name}': expected four axes for images, found {len(dims)}; use an npz file")
    channels, height, width = dims[1:] if how.layout == "nchw" else (dims[3], *dims[1:3])
    channels = channels or 3
    if channels not in _MODES:
        raise InputError(f"input '{name}': expected 1 or 3 channels, found {channels}; see --layout")
    size = how.size or ((height, width) if height and width else None)
    if size is None:
        raise InputError(f"input '{name}' has no fixed height and width; give --size, such as 224x224")
    if height not in (None, size[0]) or width not in (None, size[1]):
        raise InputError(f"--size {size[0]}x{size[1]}: the model takes images of {height}×{width}")
    return channels, size


def read_image(
    file: Path, channels: int, size: tuple[int, int], cut: Callable[[tuple[int, int]], Box] | None
) -> NDArray[np.uint8]:
    """One image as h×w×c, or the part of it that `cut` says for its width and height. Raises InputError."""
    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("ignore")
            image = image.convert(_MODES[channels])
            box = None if cut is None else cut(image.size)
            small = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read image {file}: {str(error)[:80]}; remove or replace it") from error
    return np.asarray(small).reshape(*size, channels)


def centre(size: tuple[int, int], share: float) -> Box:
    """The centre square whose side is this share of the shorter side."""
    width, height = size
    half = share * min(width, height) / 2
    return width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half


def _normalized(pixels: NDArray[np.uint8], how: Preprocess) -> NDArray[np.float32]:
    """n×h×w×c of 8 bits → the model's layout in float32."""
    for what, numbers in (("--mean", how.mean), ("--std", how.std)):
        if len(numbers) not in (1, pixels.shape[-1]):
            raise InputError(f"{what}: expected 1 or {pixels.shape[-1]} numbers, found {len(numbers)}")
    arranged = _flipped(pixels, how).astype(np.float32) / 255
    return _moved((arranged - np.array(how.mean, np.float32)) / np.array(how.std, np.float32), how)


def _arranged(pixels: NDArray, how: Preprocess) -> NDArray:
    return _moved(_flipped(pixels, how), how)


def _flipped(pixels: NDArray, how: Preprocess) -> NDArray:
    return pixels[..., ::-1] if how.colors == "bgr" else pixels


def _moved(pixels: NDArray, how: Preprocess) -> NDArray:
    return pixels.transpose(0, 3, 1, 2) if how.layout == "nchw" else pixels
