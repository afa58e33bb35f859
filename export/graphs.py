"""ONNX files in and out as onnx_ir models, and the few questions every pass asks of a graph."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from ..errors import InputError
from ..files import write_bytes
from ..runtime.onnxfile import MAX_EMBEDDED_BYTES, read

# Opset 18 belongs to IR version 8 (ONNX 1.13); runtimes refuse files with a newer IR version than theirs,
# and ONNX Runtime 1.16, the oldest we promise to run on, reads 9 at most.
IR_VERSION = 8
_MAX_PROTOBUF_BYTES = 2**31 - 1
_FIRST_WITHOUT_INPUTS = 4
_LARGEST_SIZE = 1 << 31  # of one axis; nothing that runs has more
# what protobuf, onnx's checker and onnx_ir raise for files that are something else, or contradict themselves
_NO_MODEL = (
    *(DecodeError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, NotImplementedError),
    *(onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ir.serde.SerdeError),
)


def load(path: Path | str) -> ir.Model:
    """Read and check an ONNX file. Raises InputError, one line: missing, truncated, no ONNX, NaN weights.

    Tensors outside the file are in memory too, unless they are too large for one protobuf message.
    """
    try:
        if Path(path).is_file() and Path(path).stat().st_size == 0:
            raise InputError(f"{path}: expected an ONNX model, found an empty file; export or copy it again")
        model = ir.from_proto(read(path))
        ir.external_data.set_base_dir(model.graph, str(Path(path).parent))
        ir.to_proto(model)  # strings that are no UTF-8 pass the checker and fail here
        _check_declared(model, path)
        _check_finite(model, path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except _NO_MODEL as error:
        found = _first_line(error)
        raise InputError(f"{path}: expected an ONNX model, found {found}; export or copy it again") from error
    return model


def save(model: ir.Model, path: Path) -> None:
    """Write as one file with embedded weights, whole or not at all."""
    write_bytes(path, serialize(model))


def with_weights(proto: onnx.ModelProto, weights: Mapping[str, NDArray]) -> onnx.ModelProto:
    """A copy of the model with other numbers in its initialisers."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    for entry in changed.graph.initializer:
        if entry.name in weights:
            entry.CopyFrom(onnx.numpy_helper.from_array(np.asarray(weights[entry.name], order="C"), entry.name))
    return changed


def copied(model: ir.Model) -> ir.Model:
    """The same, to be changed."""
    return ir.from_proto(ir.to_proto(model))


def serialize(model: ir.Model) -> bytes:
    """The file's bytes, the same for the same graph. Raises InputError above protobuf's limit of 2 GB."""
    model.ir_version = ir_version(model)
    proto = ir.to_proto(model)
    for entries in (proto.graph.initializer, proto.graph.value_info):
        entries.sort(key=lambda entry: entry.name)  # shape inference leaves them in any order
    if proto.ByteSize() > _MAX_PROTOBUF_BYTES:
        raise InputError("the model is larger than 2 GB, more than one ONNX file holds; make it smaller")
    return proto.SerializeToString(deterministic=True)


def ir_version(model: ir.Model) -> int:
    """The lowest that old runtimes read: the model's own, or `IR_VERSION` where the opset allows it.

    At least 4: before it, initialisers had to be graph inputs (onnx, docs/IR.md).
    """
    newest = IR_VERSION if _opset(model) <= 18 else model.ir_version
    return max(min(model.ir_version, newest), _FIRST_WITHOUT_INPUTS)


def is_large(model: ir.Model) -> bool:
    """Whether the weights do not fit into one ONNX file."""
    return weight_bytes(model) > MAX_EMBEDDED_BYTES


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initialisers of the main graph."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def write_into(folder: Path, name: str, model: ir.Model) -> list[str]:
    """Write the model into a scratch folder: one file, or two where it is large. Returns the files' names."""
    if not is_large(model):
        save(model, folder / name)
        return [name]
    data = f"{name}.data"
    model.ir_version = ir_version(model)
    ir.save(model, folder / name, external_data=data)
    return [data, name]


def _opset(model: ir.Model) -> int:
    return model.opset_imports.get("", 0)


def array(value: ir.Value | None) -> NDArray | None:
    """A constant's numbers (initialiser or Constant node), or None for an activation or an absent input."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """The node's input, None where it is optional and absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def sizes(value: ir.Value | None) -> list[int | None]:
    """The value's dimensions, None where one is symbolic; empty when the rank is unknown."""
    if value is None or value.shape is None:
        return []
    return [dimension if isinstance(dimension, int) else None for dimension in value.shape]


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads the value, once; None too where it is an output of the graph."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def runs(nodes: Iterable[ir.Node], following: Mapping[ir.Node, ir.Node]) -> Iterator[list[ir.Node]]:
    """Nodes in rows, each followed by the next, in the order of the rows' first nodes."""
    later = set(following.values())
    for node in nodes:
        run = [] if node in later else [node]
        while run and run[-1] in following:
            run.append(following[run[-1]])
        if run:
            yield run


def add_initializer(graph: ir.Graph, name: str, numbers: NDArray) -> ir.Value:
    """Register `numbers` under `name`, or under `name_2`, … when that is taken."""
    value = ir.Value(name=unique(name, graph.initializers), const_value=ir.tensor(numbers))
    set_array(value, numbers)
    graph.register_initializer(value)
    return value


def set_array(value: ir.Value, numbers: NDArray) -> None:
    """Give an initialiser new numbers, and the type and shape that go with them."""
    numbers = np.asarray(numbers, order="C")  # ascontiguousarray would make a scalar a vector
    value.const_value = ir.tensor(numbers, name=value.name)
    value.shape = ir.Shape(numbers.shape)
    value.dtype = value.const_value.dtype


def own_input(node: ir.Node, index: int, numbers: NDArray, name: str) -> None:
    """Make `numbers` the node's constant input `index`, without touching other readers of the old one."""
    graph = node.graph
    assert isinstance(graph, ir.Graph), f"node {node.name!r} is in no graph"
    value = input_at(node, index)
    if value is not None and value.is_initializer() and len(value.uses()) == 1:
        set_array(value, numbers)
        return
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, add_initializer(graph, name, numbers))


def remove_node(node: ir.Node, replacement: ir.Value) -> None:
    """Drop a node of one output; its readers, and the graph's outputs by name, get `replacement`."""
    output, graph = node.outputs[0], node.graph
    assert graph is not None, f"node {node.name!r} is in no graph"
    is_output, name = output.is_graph_output(), output.name
    output.replace_all_uses_with(replacement, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if is_output:
        replacement.name = name


def replace_node(old: ir.Node, new: ir.Node) -> None:
    """`new` in the place of `old`, and of what only it read; both have one output."""
    output, graph = old.outputs[0], old.graph
    assert graph is not None, f"node {old.name!r} is in no graph"
    new.outputs[0].name, new.outputs[0].type = f"{output.name}_rewritten", output.type
    new.outputs[0].shape = output.shape
    graph.insert_before(old, new)
    sources = [old.inputs[0]]
    remove_node(old, new.outputs[0])
    while sources and (value := sources.pop()) is not None and not value.uses() and not value.is_graph_output():
        producer = value.producer()
        if producer is not None:
            sources += producer.inputs[:1]
            graph.remove(producer, safe=True)


def drop_unused_initializers(graph: ir.Graph) -> None:
    """Remove initialisers that no node reads any more."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def refresh_shapes(model: ir.Model) -> None:
    """Forget the shapes of all intermediate values and infer them again."""
    for node in model.graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None
    # data propagation carries the batch's symbol through Shape and Concat into Reshape
    with _inferable(model.graph):
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


@contextmanager
def _inferable(graph: ir.Graph) -> Iterator[None]:
    """onnx (1.23) infers no shape of a GroupNormalization; that of an InstanceNormalization is the same."""
    nodes = [node for node in graph if node.op_type == "GroupNormalization" and not node.domain]
    for node in nodes:
        node.op_type = "InstanceNormalization"
    try:
        yield
    finally:
        for node in nodes:
            node.op_type = "GroupNormalization"


def unique(name: str, taken: Container[str]) -> str:
    """`name`, or the first of `name_2`, `name_3`, … that is not in `taken`."""
    candidates = (name if n == 1 else f"{name}_{n}" for n in count(1))
    return next(candidate for candidate in candidates if candidate not in taken)


def _check_declared(model: ir.Model, path: Path | str) -> None:
    """Sizes of the graph's inputs and outputs, which later steps take as they are declared."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        wrong = next((size for size in sizes(value) if size is not None and not 0 <= size < _LARGEST_SIZE), None)
        if wrong is not None:
            raise InputError(f"{path}: '{value.name}' is declared with the size {wrong}; export it again")


def _check_finite(model: ir.Model, path: Path | str) -> None:
    for name, value in model.graph.initializers.items():
        numbers = array(value)  # also where the checker lets more bytes pass than the shape takes
        if numbers is None or numbers.dtype.kind != "f" or numbers.ndim == 0:
            continue  # scalars may be infinite: a Clip without an upper end, a mask's fill
        if not np.isfinite(numbers).all():
            raise InputError(
                f"{path}: expected finite weights, found NaN or infinity in '{name}'; train or export it again"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
