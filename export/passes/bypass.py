"""Detours of data movement: nodes in a row that put numbers elsewhere and end in the shape that they began with.

Requires: a canonical graph, shapes inferred. Ensures: the movement nodes of a detour are gone; what maps each number
by itself between them stays. Exact where the detour says so; elsewhere the model computes something else in the same
shapes, which tells what the movement costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..coupling.elementwise import BINARY, UNARY
from ..graphs import array, drop_unused_initializers, only_reader, refresh_shapes, remove_node, runs, sizes
from ..reference import compute_node

_MOVES = (
    *("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth"),
    *("Slice", "Pad", "Gather", "Cast", "Identity"),
)
_OPEN_BATCH = 3  # pictures to try a symbolic first axis with: one would not show that they are mixed or cut to one


@dataclass(frozen=True)
class Detour:
    """Movement nodes by name, in order, between two values of one shape and type.

    `exact`: without the nodes the function is the same.
    """

    nodes: tuple[str, ...]
    source: str
    target: str
    exact: bool


def detours(model: ir.Model) -> list[Detour]:
    """All that share no node, in the graph's order; where they overlap an exact one goes first, then the longest."""
    opset = model.opset_imports.get("", 1)
    return [detour for path in _paths(model.graph) for detour in _along(path, opset)]


def bypass(model: ir.Model, detour: Detour) -> None:
    """Take the movement nodes of a detour out, in place, whether that is exact or not."""
    steps = [step for path in _paths(model.graph) for step in path]
    first, last = (
        next(place for place, step in enumerate(steps) if name in [node.name for node in step.nodes])
        for name in (detour.nodes[0], detour.nodes[-1])
    )
    kind = steps[first].source.type
    for step in steps[first : last + 1]:
        if step.moves:
            remove_node(step.nodes[-1], step.source)
            model.graph.remove(step.nodes[:-1], safe=True)
        else:
            step.target.type = kind
    drop_unused_initializers(model.graph)
    refresh_shapes(model)


# --- paths of nodes that read one value each ----------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """A node, or a Split and the Concat of its parts: it `moves` what its input `fed` has, or maps each by itself."""

    nodes: tuple[ir.Node, ...]
    fed: int
    moves: bool

    @property
    def source(self) -> ir.Value:
        """The one value that is no constant."""
        value = self.nodes[0].inputs[self.fed]
        assert value is not None, f"node {self.nodes[0].name!r} has no input"
        return value

    @property
    def target(self) -> ir.Value:
        """What comes out."""
        return self.nodes[-1].outputs[0]


def _paths(graph: ir.Graph) -> Iterator[list[_Step]]:
    steps = {node: step for node in graph if (step := _step(node)) is not None}
    following = {
        node: reader
        for node, step in steps.items()
        if (reader := only_reader(step.target)) is not None and reader in steps
    }
    for run in runs(steps, following):
        yield [steps[node] for node in run]


def _step(node: ir.Node) -> _Step | None:
    constants = [array(value) for value in node.inputs if value is not None]
    fed = [place for place, value in enumerate(node.inputs) if value is not None and array(value) is None]
    if node.domain or len(fed) != 1:
        return None
    if node.op_type == "Split":
        joined = _joined_again(node)
        return None if joined is None else _Step((node, joined), fed[0], moves=True)
    if node.op_type in _MOVES and fed == [0]:
        return _Step((node,), 0, moves=True)
    alone = all(numbers is None or (numbers.size == 1 and numbers.ndim <= 1) for numbers in constants)
    return _Step((node,), fed[0], moves=False) if node.op_type in (*UNARY, *BINARY) and alone else None


def _joined_again(split: ir.Node) -> ir.Node | None:
    """The Concat that all parts go to, each once, and nothing else."""
    readers = {only_reader(part) for part in split.outputs}
    concat = readers.pop() if len(readers) == 1 else None
    if concat is None or concat.domain or concat.op_type != "Concat" or len(concat.inputs) != len(split.outputs):
        return None
    return concat


# --- which of them are detours ------------------------------------------------------------------------------


def _along(path: Sequence[_Step], opset: int) -> list[Detour]:
    places = [place for place, step in enumerate(path) if step.moves]
    spans = {
        (first, last): _detour(path[first : last + 1], opset)
        for first, last in combinations_with_replacement(places, 2)
    }
    found = [(span, detour) for span, detour in spans.items() if detour is not None]
    found.sort(key=lambda one: (not one[1].exact, one[0][0] - one[0][1], one[0]))
    chosen: dict[int, Detour] = {}
    taken: set[int] = set()
    for (first, last), detour in found:
        covered = range(first, last + 1)
        if taken.isdisjoint(covered):
            taken.update(covered)
            chosen[first] = detour
    return [chosen[first] for first in sorted(chosen)]


def _detour(steps: Sequence[_Step], opset: int) -> Detour | None:
    source, target = steps[0].source, steps[-1].target
    if not _is_alike(source, target) or not _is_removable(steps):
        return None
    shape = [_OPEN_BATCH if size is None else size for size in sizes(source)]
    # two counts, as zeros or ones that a Pad puts in could pass for the numbers of one
    counts = [np.arange(start, start + np.prod(shape), dtype=np.float64).reshape(shape) for start in (1, 2)]
    results = [_moved(steps, numbers, opset) for numbers in counts]
    moved = [numbers for numbers in results if numbers is not None and list(numbers.shape) == shape]
    if len(moved) < len(counts):
        return None
    same = all(np.array_equal(one, two) for one, two in zip(counts, moved, strict=True))
    names = [node.name or "" for step in steps if step.moves for node in step.nodes]
    return Detour(tuple(names), source.name or "", target.name or "", same and _keeps_precision(steps))


def _is_alike(source: ir.Value, target: ir.Value) -> bool:
    known = bool(sizes(source)) and None not in sizes(source)[1:] and source.dtype is not None
    return known and sizes(source) == sizes(target) and source.dtype == target.dtype


def _is_removable(steps: Sequence[_Step]) -> bool:
    """Whether what stays has constants of the type it would get, and keeps an input of the graph from its outputs."""
    source, stay = steps[0].source, [step for step in steps if not step.moves]
    if any(len(step.nodes[0].inputs) > 1 and step.source.dtype != source.dtype for step in stay):
        return False
    is_end = source.is_graph_input() or source.is_graph_output()
    return bool(stay) or not (is_end and steps[-1].target.is_graph_output())


def _moved(steps: Sequence[_Step], numbers: NDArray, opset: int) -> NDArray | None:
    """Numbers after the movement alone; None where it cannot be computed."""
    result: NDArray | None = numbers
    for step in steps:
        node = step.nodes[0]
        if result is None or not step.moves or node.op_type == "Cast":
            continue
        if node.op_type == "Split":
            result = _cut_and_joined(step, result)
        else:
            given = [result if value is step.source else array(value) for value in node.inputs]
            result = compute_node(node, opset, given)
    return result


def _cut_and_joined(step: _Step, numbers: NDArray) -> NDArray | None:
    split, concat = step.nodes
    axis = split.attributes.get_int("axis", 0)
    counts = [sizes(part)[axis] for part in split.outputs if sizes(part)]
    known = [count for count in counts if count is not None]
    if len(known) < len(split.outputs):
        return None
    parts = dict(zip(split.outputs, np.split(numbers, np.cumsum(known)[:-1], axis=axis), strict=True))
    joined = [parts[value] for value in concat.inputs if value is not None]
    return np.concatenate(joined, axis=concat.attributes.get_int("axis", 0))


def _keeps_precision(steps: Sequence[_Step]) -> bool:
    """Whether every type on the way holds all numbers of the first."""
    casts = [step.nodes[0] for step in steps if step.nodes[0].op_type == "Cast"]
    kind = steps[0].source.dtype
    assert kind is not None, f"the type of {steps[0].source.name!r} is unknown"
    return all(np.can_cast(kind.numpy(), ir.DataType(node.attributes.get_int("to")).numpy()) for node in casts)
