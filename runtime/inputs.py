"""Arrays for a model's inputs, whatever they are: seeded numbers of the right kind and shape, or the user's own.

Floats are standard normal. Whole numbers stay below the smallest table they index (token ids), and are 0 or 1
where they index none (masks). An open first axis is the batch; other open axes need a shape from the user.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import InputError

MAX_INPUT_BYTES = 1 << 31  # more is a mistake in a shape, not a network's input
_EXAMPLE = "--shape {name}:1x3x224x224"
_FLOATS = {"FLOAT": "float32", "DOUBLE": "float64", "FLOAT16": "float16"}
_WHOLE = {name.upper(): name for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")}
# Nodes behind which a number is still the same number.
_CARRIERS = {"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Slice", "Concat"}
_IMAGE_LEVELS = 128  # 8-bit inputs that index nothing are images; the lower half suits int8 and uint8 alike


@dataclass(frozen=True)
class Given:
    """What the user says about inputs, by name: shapes (`--shape`) or the arrays themselves (`--inputs`)."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    arrays: Mapping[str, NDArray] | None = None


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`input:1x3x224x224` → {"input": (1, 3, 224, 224)}; a scalar is `input:`. The name may hold colons."""
    found = {}
    for text in texts:
        name, colon, sizes = text.rpartition(":")
        parts = sizes.lower().split("x") if sizes else []
        if not colon or not name or not all(_is_size(part) for part in parts):
            raise InputError(f"--shape {text!r}: expected NAME:SIZExSIZE…, such as input:1x3x224x224")
        found[name] = tuple(int(part) for part in parts)
    return found


def read_arrays(path: Path) -> dict[str, NDArray]:
    """All arrays of an npz file, by name; no pickled objects."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError, NotImplementedError) as error:
        raise InputError(f"{path}: expected an npz file of plain arrays ({str(error)[:80]})") from error


def write_arrays(path: Path, arrays: Mapping[str, NDArray]) -> None:
    """As numpy.savez does, which takes some names for its own arguments; the same bytes for the same arrays."""
    with zipfile.ZipFile(path, "w") as file:
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def given(shapes: Sequence[str] | None, arrays: Path | None) -> Given:
    """What the options `--shape` and `--inputs` say."""
    return Given(parse_shapes(shapes or ()), None if arrays is None else read_arrays(arrays))


def graph_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that somebody has to feed: initialisers may be listed among them and are not."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    constants |= {sparse.values.name for sparse in proto.graph.sparse_initializer}
    return [value for value in proto.graph.input if value.name not in constants]


def make_inputs(
    proto: onnx.ModelProto, batch: int, generator: np.random.Generator, said: Given | None = None
) -> dict[str, NDArray]:
    """An array for every input; an open first axis becomes `batch`. The user's own arrays come as they are.

    Raises InputError, one line: an input that is no tensor of numbers, an open axis nobody gave a size for,
    arrays or shapes that do not fit.
    """
    said = said or Given()
    if said.arrays is not None:
        return _fitted(proto, said.arrays)
    return {
        value.name: _random(proto, value, shape, generator)
        for value, shape in zip(graph_inputs(proto), input_shapes(proto, batch, said.shapes).values(), strict=True)
    }


def input_shapes(
    proto: onnx.ModelProto, batch: int, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, list[int]]:
    """The shape of every input at this batch; a size given for a symbol (`height`) holds wherever it stands."""
    shapes = shapes or {}
    values = graph_inputs(proto)
    if unknown := set(shapes) - {value.name for value in values}:
        names = ", ".join(f"'{value.name}'" for value in values)
        raise InputError(f"--shape names no input '{min(unknown)}'; the model has {names or 'none'}")
    symbols: dict[str, int] = {}
    for value in values:
        if value.name in shapes:
            symbols |= _symbols(value, shapes[value.name])
    return {value.name: _shape(value, batch, shapes.get(value.name), symbols) for value in values}


def has_open_batch(proto: onnx.ModelProto) -> bool:
    """Whether any input's first axis is open, so that the model can be run at several batches."""
    return any(dims and _fixed(dims[0]) is None for dims in (_dims(value) for value in graph_inputs(proto)))


def fixed_batch(proto: onnx.ModelProto) -> int | None:
    """How many inputs the model insists on at a time, None where that is open."""
    sizes = [_fixed(dims[0]) for dims in (_dims(value) for value in graph_inputs(proto)) if dims]
    return next((size for size in sizes if size is not None), None)


def has_open_axes(proto: onnx.ModelProto) -> bool:
    """Whether an input has an open axis beside the batch."""
    return any(_fixed(size) is None for value in graph_inputs(proto) for size in _dims(value)[1:])


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 0 < len(text) < 10 and int(text) > 0


def _dims(value: onnx.ValueInfoProto) -> Sequence[onnx.TensorShapeProto.Dimension]:
    return value.type.tensor_type.shape.dim


def _fixed(size: onnx.TensorShapeProto.Dimension) -> int | None:
    return size.dim_value if size.HasField("dim_value") else None


def _symbols(value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> dict[str, int]:
    """Sizes that a given shape binds to names; the first axis is the batch and binds nothing."""
    dims = _dims(value)
    if value.type.tensor_type.HasField("shape") and len(dims) != len(shape):
        raise InputError(f"--shape {value.name}: expected {len(dims)} sizes, found {len(shape)}")
    return {dim.dim_param: size for dim, size in list(zip(dims, shape, strict=False))[1:] if dim.dim_param}


def _shape(
    value: onnx.ValueInfoProto, batch: int, wanted: tuple[int, ...] | None, symbols: Mapping[str, int]
) -> list[int]:
    _kind(value)  # a sequence has no shape, and no --shape would help
    if not value.type.tensor_type.HasField("shape"):
        if wanted is None:
            raise InputError(f"input '{value.name}' has no shape; give {_EXAMPLE.format(name=value.name)}")
        return list(wanted)
    dims, sizes = _dims(value), []
    for axis, dim in enumerate(dims):
        size = _fixed(dim)
        if wanted is not None and size not in (None, wanted[axis]):
            raise InputError(f"--shape {value.name}: axis {axis} is fixed at {size}, found {wanted[axis]}")
        if size is None:
            size = batch if axis == 0 else wanted[axis] if wanted else symbols.get(dim.dim_param)
        if size is None:
            hint = _EXAMPLE.format(name=value.name)
            raise InputError(f"input '{value.name}': axis {axis} has no fixed size; give one, such as {hint}")
        if size < 1:
            raise InputError(f"input '{value.name}': axis {axis} has the size {size}; export it with one above 0")
        sizes.append(size)
    if prod(sizes) * 8 > MAX_INPUT_BYTES:
        raise InputError(f"input '{value.name}' of shape {sizes[:8]} is too large to run; give a smaller --shape")
    return sizes


def _kind(value: onnx.ValueInfoProto) -> str:
    which = value.type.WhichOneof("value") or "nothing"
    if which != "tensor_type":
        raise InputError(f"input '{value.name}': expected a tensor of numbers, found {which.removesuffix('_type')}")
    number = value.type.tensor_type.elem_type
    known = number in onnx.TensorProto.DataType.values()
    return onnx.TensorProto.DataType.Name(number) if known else f"type {number}"


def _random(
    proto: onnx.ModelProto, value: onnx.ValueInfoProto, shape: list[int], generator: np.random.Generator
) -> NDArray:
    kind = _kind(value)
    if kind in _FLOATS:
        return generator.standard_normal(shape, dtype=np.float32).astype(_FLOATS[kind])
    if kind == "BOOL":
        return generator.integers(0, 2, shape).astype(bool)
    if kind in _WHOLE:
        table = index_limit(proto, value.name)
        most = _IMAGE_LEVELS if table is None and kind in ("INT8", "UINT8") else table or 2
        return generator.integers(0, min(most, int(np.iinfo(_WHOLE[kind]).max)), shape).astype(_WHOLE[kind])
    raise InputError(f"input '{value.name}': expected a tensor of numbers, found {kind}; it cannot be run")


def index_limit(proto: onnx.ModelProto, name: str) -> int | None:
    """Rows of the smallest constant table that an input's numbers index (Gather); None if they index none."""
    tables = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    same, limits = {name}, []
    for node in proto.graph.node:
        if node.op_type in ("Cast", "DequantizeLinear", "Identity") and node.input and node.input[0] in tables:
            tables[node.output[0]] = tables[node.input[0]]
        elif node.op_type in _CARRIERS and same.intersection(node.input):
            same.update(node.output)
        elif node.op_type == "Gather" and len(node.input) == 2 and node.input[1] in same:
            axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
            dims = tables.get(node.input[0], [])
            limits += dims[axis : axis + 1] if axis >= 0 else dims[axis:][:1]
    return min((limit for limit in limits if limit > 0), default=None)


def _fitted(proto: onnx.ModelProto, arrays: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """The user's arrays in the types that the model takes; names and shapes must fit."""
    fitted = {}
    for value in graph_inputs(proto):
        if value.name not in arrays:
            raise InputError(f"the inputs have no array '{value.name}'; found {', '.join(sorted(arrays)) or 'none'}")
        fitted[value.name] = _cast(value, arrays[value.name])
    return fitted


def _cast(value: onnx.ValueInfoProto, array: NDArray) -> NDArray:
    kind = _kind(value)
    wanted = {**_FLOATS, **_WHOLE, "BOOL": "bool"}.get(kind)
    if wanted is None or not np.can_cast(array.dtype, wanted, "same_kind"):
        raise InputError(f"array '{value.name}': expected {kind.lower()}, found {array.dtype}; convert it")
    want = [_fixed(size) for size in _dims(value)]
    fits = len(want) == array.ndim and all(w in (None, h) for w, h in zip(want, array.shape, strict=True))
    if value.type.tensor_type.HasField("shape") and not fits:
        shape = [w if w is not None else "?" for w in want]
        raise InputError(f"array '{value.name}': expected the shape {shape}, found {list(array.shape)}")
    return array.astype(wanted)
