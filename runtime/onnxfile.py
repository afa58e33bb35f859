"""Read an ONNX file as data from a stranger: its external data stays inside the model's folder.

ONNX keeps tensors over protobuf's 2 GB in files beside the model, each named by a relative `location` with an
`offset` and a `length` (onnx, docs/ExternalData.md). All three come from the file and are checked here, before
anything is opened: a location that leads elsewhere would read, and write into the result, any file of the user's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from onnx.external_data_helper import load_external_data_for_model

from ..errors import InputError

# protobuf's limit for a message is 2 GiB; the rest is for names, shapes and what folding adds
MAX_EMBEDDED_BYTES = 2**31 - 2**26
_SHAPE_NUMBERS = 1024  # tensors up to this size may be shapes, which decide other shapes
EXTERNAL = onnx.TensorProto.EXTERNAL
# Bits of one element; what is not here (strings, undefined) cannot be stored outside (onnx.proto, raw_data).
_BITS = {
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("INT8", "UINT8", "BOOL"), 8),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("INT2", "UINT2"), 2),
    "COMPLEX128": 128,
}


def read(path: Path | str) -> onnx.ModelProto:
    """The checked model, with its external data loaded where all of it fits into one protobuf message.

    Raises InputError for external data that is missing, cut short or outside the model's folder; OSError,
    protobuf's DecodeError and onnx's ValidationError for the file itself.
    """
    path = Path(path)
    proto = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    if not proto.graph.node:
        raise InputError(f"{path}: expected an ONNX model, found no graph with nodes; export it again")
    outside = external_bytes(proto, path)
    if outside + path.stat().st_size > MAX_EMBEDDED_BYTES:
        onnx.checker.check_model(str(path))
        return proto
    if outside:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unknown keys of external data, which are ignored
            load_external_data_for_model(proto, str(path.parent))
    onnx.checker.check_model(proto)
    return proto


def embedded(path: Path | str) -> bytes:
    """The model as one file would have it, wherever it is then; see `read`, whose tensors must all be in memory."""
    return read(path).SerializeToString()


def skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the numbers of large tensors: all that shape inference needs, in kilobytes."""
    copy = onnx.ModelProto()
    for source, target, skipped in ((proto, copy, "graph"), (proto.graph, copy.graph, "initializer")):
        for key, value in source.ListFields():
            if key.name == skipped:
                continue
            if key.is_repeated:
                getattr(target, key.name).MergeFrom(value)
            elif key.message_type is not None:
                getattr(target, key.name).CopyFrom(value)
            else:
                setattr(target, key.name, value)
    for tensor in proto.graph.initializer:
        small = math.prod(tensor.dims) <= _SHAPE_NUMBERS
        bare = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        copy.graph.initializer.append(tensor if small else bare)
    return copy


def has_external(proto: onnx.ModelProto) -> bool:
    """Whether any tensor's numbers are still outside."""
    return any(tensor.data_location == EXTERNAL for tensor in tensors(proto))


def external_bytes(proto: onnx.ModelProto, path: Path) -> int:
    """Bytes of all tensors stored outside `path`; 0 for a model in one file. Raises InputError as `read`."""
    return sum(_checked_bytes(tensor, path) for tensor in tensors(proto) if tensor.data_location == EXTERNAL)


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initialisers and attributes, in subgraphs and functions too."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model, in subgraphs and functions too."""
    for body in (proto.graph, *proto.functions):
        yield from _all_nodes(body.node)


def _all_nodes(outer: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in outer:
        yield node
        for attribute in node.attribute:
            for graph in _graphs(attribute):
                yield from _all_nodes(graph.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in _graphs(attribute):
            yield from _graph_tensors(graph)


def _graphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _checked_bytes(tensor: onnx.TensorProto, path: Path) -> int:
    """Size of one external tensor after all that its description says was found to hold."""
    name = f"{path}: external data of '{tensor.name[:80]}'"
    described = {entry.key: entry.value for entry in tensor.external_data}
    data = _inside(described.get("location", ""), path, name)
    offset, length = (_whole(described.get(key), key, name) for key in ("offset", "length"))
    try:
        available = data.stat().st_size - (offset or 0)
    except OSError as error:
        raise InputError(f"{name}: cannot read {data}: {error.strerror}; copy it beside the model") from error
    wanted = _stored_bytes(tensor, name)
    if available < wanted or length not in (None, wanted):
        found = f"{max(available, 0)} bytes" + (f" and a length of {length}" if length is not None else "")
        raise InputError(f"{name}: expected {wanted} bytes, found {found}; copy the model and its data again")
    return wanted


def _inside(location: str, path: Path, name: str) -> Path:
    """The file a location names; InputError unless it lies in the model's own folder, links followed."""
    folder = path.parent.resolve()
    try:
        data = (path.parent / location).resolve()
        is_file = data.is_file()
    except (ValueError, OSError, RuntimeError):  # a zero byte, a name too long, links in a circle
        data, is_file = None, False
    if data is None or not location or Path(location).is_absolute() or not data.is_relative_to(folder):
        raise InputError(f"{name}: expected a file in the model's folder, found {location[:80]!r}; refused")
    if not is_file:
        raise InputError(f"{name}: no file {location[:80]!r} beside the model; copy it there")
    return data


def _whole(text: str | None, key: str, name: str) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise InputError(f"{name}: expected a whole number as {key}, found {text[:40]!r}; export it again")
    return int(text)


def _stored_bytes(tensor: onnx.TensorProto, name: str) -> int:
    kind = onnx.TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in _KNOWN_TYPES else "unknown"
    if kind not in _BITS or any(size < 0 for size in tensor.dims):
        raise InputError(f"{name}: expected numbers of a known size, found {kind} {list(tensor.dims)[:8]}; refused")
    return -(-math.prod(tensor.dims) * _BITS[kind] // 8)


_KNOWN_TYPES = set(onnx.TensorProto.DataType.values())
