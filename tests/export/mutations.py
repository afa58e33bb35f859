"""Damage done to ONNX files: bytes flipped, cut and repeated; fields set to what no exporter would write."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

MEMORY_BYTES = 4 << 30  # address space of the child that folds one small file
LIMIT_S = 20.0  # a fold takes a fifth of a second; what loops for ever is ended here
LOOSE = 1e-2  # for an independent look at what fold itself checks to far less; damaged weights are ill-conditioned

WHOLE = (-(2**63), -(2**31), -7, -1, 0, 1, 2, 3, 7, 64, 1000, 65_537, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1)
REAL = (0.0, -1.0, 1e-45, 1e30, -1e38, float("inf"), float("nan"))
TEXT = (
    *("", "x", "input", "../../etc/passwd", "/etc/passwd", "a\nb\x1b[31m", "ü" * 300, "Conv", "Relu", "Loop", "MatMul"),
    *("Identity", "SAME_UPPER", "ai.onnx.ml", "com.microsoft", "batch", "weights.bin", "../secret.bin"),
)
_PLACES = ("../secret.bin", "/etc/passwd", "link.bin", "no.bin", "", ".", "\0", "a" * 5000, "~/x")
Mutation = Callable[[bytes, random.Random], bytes]


def flipped(content: bytes, rng: random.Random) -> bytes:
    """Some bits inverted."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def flipped_in_structure(content: bytes, rng: random.Random) -> bytes:
    """Bits inverted where the numbers of the weights are not: names, shapes, lengths, attributes."""
    model = onnx.load_model_from_string(content)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > 256:
            tensor.raw_data = bytes(len(tensor.raw_data))
    structure = model.SerializeToString()
    damaged = bytearray(structure)
    places = [place for place in range(len(structure)) if structure[place]]
    for _ in range(rng.choice((1, 2, 4))):
        damaged[rng.choice(places)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def truncated(content: bytes, rng: random.Random) -> bytes:
    """The end is missing."""
    return content[: rng.randrange(len(content))]


def shuffled(content: bytes, rng: random.Random) -> bytes:
    """A piece is missing, repeated, or somewhere else."""
    start = rng.randrange(len(content))
    stop = min(len(content), start + rng.choice((1, 8, 200)))
    piece, rest = content[start:stop], content[:start] + content[stop:]
    place = rng.randrange(len(rest) + 1)
    return rng.choice((rest, content[:stop] + piece + content[stop:], rest[:place] + piece + rest[place:]))


def fields_changed(content: bytes, rng: random.Random) -> bytes:
    """One to three fields anywhere in the message set to something else, removed or doubled."""
    model = onnx.load_model_from_string(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change(rng.choice(list(_messages(model))), rng)
    return model.SerializeToString()


def dimensions_changed(content: bytes, rng: random.Random) -> bytes:
    """Sizes of inputs, weights and attributes that ask for other, or for enormous, arrays."""
    model = onnx.load_model_from_string(content)
    sizes = [message for message in _messages(model) if message.DESCRIPTOR.name in ("Dimension", "TensorProto")]
    for message in rng.sample(sizes, min(len(sizes), rng.choice((1, 2)))):
        if message.DESCRIPTOR.name == "Dimension":
            message.dim_value = rng.choice(WHOLE)  # pyright: ignore[reportAttributeAccessIssue]
        elif len(message.dims):  # pyright: ignore[reportAttributeAccessIssue]
            message.dims[rng.randrange(len(message.dims))] = rng.choice(WHOLE)  # pyright: ignore[reportAttributeAccessIssue]
    return model.SerializeToString()


def constants_changed(content: bytes, rng: random.Random) -> bytes:
    """Whole-number constants, which say shapes, axes, counts and pads, set to other numbers."""
    model = onnx.load_model_from_string(content)
    whole = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT64]
    attributes = [one for node in model.graph.node for one in node.attribute if one.ints or one.type == one.INT]
    if whole and rng.random() < 0.5:
        tensor = rng.choice(whole)
        numbers = onnx.numpy_helper.to_array(tensor).copy()
        if numbers.size:
            numbers.reshape(-1)[rng.randrange(numbers.size)] = rng.choice(WHOLE)
        tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, tensor.name))
    elif attributes:
        attribute = rng.choice(attributes)
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(WHOLE)
        else:
            attribute.i = rng.choice(WHOLE)
    return model.SerializeToString()


def wires_changed(content: bytes, rng: random.Random) -> bytes:
    """Nodes that read something else, in another order, twice or not at all: cycles, gaps, doubles."""
    model = onnx.load_model_from_string(content)
    nodes = model.graph.node
    names = [name for node in nodes for name in (*node.input, *node.output)] + ["nothing", ""]
    node = rng.choice(nodes)
    action = rng.randrange(5)
    if action == 0 and len(node.input):
        node.input[rng.randrange(len(node.input))] = rng.choice(names)
    elif action == 1:
        node.output[0] = rng.choice(names)
    elif action == 2:
        nodes.remove(node)
    elif action == 3:
        nodes.append(node)
    else:
        node.op_type = rng.choice([other.op_type for other in nodes] + ["Loop", "Shape", "Tile", "ConstantOfShape"])
    return model.SerializeToString()


def located_elsewhere(content: bytes, rng: random.Random) -> bytes:
    """External data that lies outside the folder, is not there, or is not as long as it says."""
    model = onnx.load_model_from_string(content)
    outside = [one for one in model.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL]
    entries = rng.choice(outside).external_data if outside else ()
    entry = rng.choice(entries) if entries else None
    if entry is not None and entry.key == "location":
        entry.value = rng.choice(_PLACES)
    elif entry is not None:
        entry.value = rng.choice(("-1", "1e9", str(2**63), "18446744073709551616", "", "７", str(rng.randrange(4000))))
    return model.SerializeToString()


MUTATIONS: tuple[Mutation, ...] = (
    flipped,
    flipped_in_structure,
    truncated,
    shuffled,
    fields_changed,
    dimensions_changed,
    constants_changed,
    wires_changed,
    located_elsewhere,
)


def mutated(sources: list[Path], count: int, seed: int = 0) -> Iterator[tuple[str, Path, bytes]]:
    """`count` damaged files: what was done, to which file, the content. All mutations and files take turns."""
    for index in range(count):
        rng = random.Random(seed * 1_000_003 + index)
        mutation, source = MUTATIONS[index % len(MUTATIONS)], rng.choice(sources)
        yield f"{index} {mutation.__name__} {source.stem}", source, mutation(source.read_bytes(), rng)


def _messages(message: Message) -> Iterator[Message]:
    """A message and all inside it, but for weights."""
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in [value] if isinstance(value, Message) else list(value):
                yield from _messages(inner)


def _change(message: Message, rng: random.Random) -> None:
    fields = list(message.DESCRIPTOR.fields)
    field = rng.choice([field for field, _ in message.ListFields()] or fields)
    value = getattr(message, field.name)
    if field.type == FieldDescriptor.TYPE_MESSAGE or rng.random() < 0.2:
        _lose_or_double(message, field, value, rng)
    elif isinstance(value, int | float | str | bytes):
        setattr(message, field.name, _other(field, rng))
    elif len(value):
        value[rng.randrange(len(value))] = _other(field, rng)


def _lose_or_double(message: Message, field: Any, value, rng: random.Random) -> None:
    if not hasattr(value, "append") or not len(value):
        message.ClearField(field.name)
    elif rng.random() < 0.5:
        del value[rng.randrange(len(value))]
    else:
        value.append(value[rng.randrange(len(value))])


def _other(field: Any, rng: random.Random):
    """A value of the field's type that nobody would write."""
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice(REAL)
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice(TEXT)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.choice((b"", b"\xff\xfe", b"SAME_LOWER", bytes(rng.randrange(64))))
    if field.type == FieldDescriptor.TYPE_ENUM:
        return rng.choice([one.number for one in field.enum_type.values])
    narrow = field.type in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_UINT32)
    most = 2**31 - 1 if narrow else 2**63 - 1
    unsigned = field.type in (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_UINT32)
    number = max(min(rng.choice(WHOLE), most), -most)
    return abs(number) if unsigned else number
