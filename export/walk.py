"""A network run over calibration data as far as is asked for, so that a walk through its layers runs every node once.

What has been computed and is still needed is held in memory where it fits, else computed again from the last place
that did.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import InputError
from ..runtime.inputs import fixed_batch
from .calibration import Feed, Samples
from .sessions import session

BATCH = 32
HELD_BYTES = 1 << 29  # a ResNet-50's two branches for 64 images of 224×224 are 410 MB


class Walk:
    """`proto` may be exchanged for one that differs only in nodes that have not run: those behind `move_to`.

    Where the model insists on a batch, samples that do not fill one are left out.
    """

    def __init__(self, proto: onnx.ModelProto, samples: Samples, held_bytes: int = HELD_BYTES) -> None:
        fixed = fixed_batch(proto)
        self.proto, self._size = proto, fixed or BATCH
        self.samples = samples if fixed is None else replace(samples, count=samples.count - samples.count % fixed)
        if not self.samples.count:
            raise InputError(f"expected {fixed} inputs, the model's batch, found {samples.count}; give more data")
        self._most = held_bytes
        self._held: dict[str, list[NDArray]] = {}
        self._done: set[str] = set()

    def move_to(self, value: str) -> Iterable[NDArray]:
        """The value, a batch at a time; what it needs has run then, and nothing else."""
        if value in {entry.name for entry in self.proto.graph.input}:
            return (feed[value] for feed, _ in self.samples.batches(self._size))
        if value in self._held:
            return self._held[value]
        part = cut(self.proto, [value], self._examples())
        done = self._done | {name for node in part.graph.node for name in node.output}
        kept = [name for name in _needed(self.proto, done) if name in done and name != value]
        fresh = [name for name in kept if name not in self._held]
        part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in fresh)
        rows = self._run(part, [value, *fresh])
        first = next(rows)
        batches = -(-self.samples.count // self._size)
        held = {name: self._held[name] for name in kept if name in self._held}
        if not self._fits(first, held, batches):
            return chain(first[:1], (row[0] for row in rows))
        columns = list(zip(first, *rows, strict=True))
        self._held = held | dict(zip([value, *fresh], map(list, columns), strict=True))
        self._done = done
        return self._held[value]

    def peek(
        self, values: Sequence[str], proto: onnx.ModelProto | None = None, count: int | None = None
    ) -> Iterator[list[Any]]:
        """Values further on, a batch at a time, for the first `count` samples; the walk stays where it is."""
        known = self._examples()
        part = cut(proto or self.proto, [value for value in values if value not in known], known)
        return islice(self._run(part, values), None if count is None else -(-count // self._size))

    def _fits(self, first: Sequence[object], held: Mapping[str, list[NDArray]], batches: int) -> bool:
        arrays = [one for one in first if isinstance(one, np.ndarray)]
        before = sum(array.nbytes for column in held.values() for array in column)
        return len(arrays) == len(first) and before + batches * sum(one.nbytes for one in arrays) <= self._most

    def _examples(self) -> dict[str, NDArray]:
        return {name: column[0] for name, column in self._held.items()}

    def _run(self, part: onnx.ModelProto, values: Sequence[str]) -> Iterator[list[Any]]:
        """`values`, held or put out by a part of the graph, for each batch."""
        names = [entry.name for entry in part.graph.input]
        outputs = [entry.name for entry in part.graph.output]
        runner = session(part.SerializeToString(), f"the model up to '{outputs[0]}'") if outputs else None
        for number, feed in enumerate(self._feeds(all(name in self._held for name in names))):
            given = {name: self._held[name][number] if name in self._held else feed[name] for name in names}
            found = dict(zip(outputs, runner.run(None, given), strict=True)) if runner else {}
            yield [found[value] if value in found else self._held[value][number] for value in values]

    def _feeds(self, is_known: bool) -> Iterator[Feed]:
        """The samples, not even read where all is held."""
        if is_known:
            return ({} for _ in range(-(-self.samples.count // self._size)))
        return (feed for feed, _ in self.samples.batches(self._size))


def cut(proto: onnx.ModelProto, values: Sequence[str], known: Mapping[str, NDArray]) -> onnx.ModelProto:
    """The part of a graph that computes `values`, with what is `known` and the graph's inputs as its inputs."""
    needed, nodes = set(values), []
    for node in reversed(proto.graph.node):
        if needed.intersection(node.output) - known.keys():
            nodes.append(node)
            needed.update(_read(node))
    part = onnx.ModelProto()
    part.CopyFrom(onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import))
    part.functions.extend(proto.functions)
    part.graph.name = proto.graph.name or "part"
    part.graph.node.extend(reversed(nodes))
    part.graph.input.extend(entry for entry in proto.graph.input if entry.name in needed)
    part.graph.input.extend(_input(name, array) for name, array in known.items() if name in needed)
    part.graph.initializer.extend(entry for entry in proto.graph.initializer if entry.name in needed)
    part.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values)
    return part


def _needed(proto: onnx.ModelProto, done: Collection[str]) -> list[str]:
    """What the nodes that have not run read, and the graph's outputs; each once."""
    open_nodes = [node for node in proto.graph.node if not any(name in done for name in node.output)]
    names = [name for node in open_nodes for name in _read(node)] + [entry.name for entry in proto.graph.output]
    return list(dict.fromkeys(names))


def _input(name: str, array: NDArray) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, [f"{name}_{axis}" for axis in range(array.ndim)])


def _read(node: onnx.NodeProto) -> list[str]:
    """Names that a node and its subgraphs read; those of their own values do no harm."""
    graphs = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [*filter(None, node.input), *(name for graph in graphs for inner in graph.node for name in _read(inner))]
