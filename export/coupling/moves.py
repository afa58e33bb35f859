"""Operators that put channels elsewhere: one comes from one, and constants that count or name them are rewritten."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graphs import add_initializer, array, input_at, own_input, sizes
from .classes import Coupling, Ids, Kept
from .ranges import axes_or_all, padding, slices

_END = np.iinfo(np.int64).max


def concat(node: ir.Node, coupling: Coupling) -> bool:
    """Channels of the inputs, one after the other."""
    output = node.outputs[0]
    axis = node.attributes.get_int("axis", 0) % len(sizes(output))
    parts = [coupling.ids(value, axis) for value in node.inputs]
    for value in node.inputs:
        _tie_but(value, output, (axis,), coupling)
    _tie_parts(parts, coupling.ids(output, axis), coupling)
    return True


def split(node: ir.Node, coupling: Coupling) -> bool:
    """The reverse; how many go where is written out, since equal parts may not stay equal."""
    source = node.inputs[0]
    axis = node.attributes.get_int("axis", 0) % len(sizes(source))
    if input_at(node, 1) is not None and array(input_at(node, 1)) is None:
        return False
    parts = [coupling.ids(value, axis) for value in node.outputs]
    for value in node.outputs:
        _tie_but(source, value, (axis,), coupling)
    _tie_parts(parts, coupling.ids(source, axis), coupling)
    known = [ids for ids in parts if ids is not None]
    if len(known) == len(parts):
        coupling.rewrites.append(lambda kept: _write_split(node, known, kept))
    return True


def slice_(node: ir.Node, coupling: Coupling) -> bool:
    """A range of an axis; what lies outside of it is not touched."""
    source, output = node.inputs[0], node.outputs[0]
    ranges = slices(node)
    if ranges is None:
        return False
    _tie_but(source, output, tuple(ranges), coupling)
    for axis, (start, stop, step) in ranges.items():
        before, after = coupling.ids(source, axis), coupling.ids(output, axis)
        coupling.tie(None if before is None else before[slice(start, stop, step)], after)
        if before is None:
            coupling.freeze(after, f"cut by '{node.name}' (Slice) out of an axis of unknown size")
        elif after is not None:
            taken = before[slice(start, stop, step)]
            coupling.rewrites.append(partial(_write_slice, node, axis, before, taken))
    return True


def pad(node: ir.Node, coupling: Coupling) -> bool:
    """New channels around the old ones (the option-A shortcut of CIFAR ResNets), or new pixels."""
    source, output = node.inputs[0], node.outputs[0]
    mode, amounts = node.attributes.get_string("mode", "constant"), padding(node)
    if amounts is None or any(min(pair) < 0 for pair in amounts.values()):
        return False
    padded = {axis: pair for axis, pair in amounts.items() if any(pair)}
    _tie_but(source, output, tuple(padded), coupling)
    for axis, (before, after) in padded.items():
        old, new = coupling.ids(source, axis), coupling.ids(output, axis)
        if mode != "constant" or old is None or new is None:
            for ids in (old, new):
                coupling.freeze(ids, f"reflected or repeated by '{node.name}' (Pad)")
            continue
        coupling.tie(old, new[before : len(new) - after])
        ends = new[:before], new[len(new) - after :]
        coupling.rewrites.append(partial(_write_pad, node, axis, ends))
    return True


def gather(node: ir.Node, coupling: Coupling) -> bool:
    """Channels by constant indices, or rows of a constant table by an activation."""
    source, output = node.inputs[0], node.outputs[0]
    axis, indices = node.attributes.get_int("axis", 0) % len(sizes(source)), array(input_at(node, 1))
    rank = len(sizes(input_at(node, 1)))
    if indices is None and array(source) is None:
        return False
    for before in range(len(sizes(source))):
        if before != axis:
            after = before if before < axis else before + rank - 1
            coupling.tie(coupling.ids(source, before), coupling.ids(output, after))
    ids = coupling.ids(source, axis)
    after = coupling.ids(output, axis) if rank == 1 else None
    if indices is None or ids is None or after is None:
        reason = f"chosen one by one by '{node.name}' (Gather)"
        coupling.freeze(ids, reason)
        for later in range(axis, axis + rank):
            coupling.freeze(coupling.ids(output, later), reason)
        return True
    taken = ids[indices]
    coupling.tie(taken, after)
    coupling.rewrites.append(lambda kept: _write_indices(node, ids, taken, kept))
    return True


def transpose(node: ir.Node, coupling: Coupling) -> bool:
    """Axes change their order."""
    source, output = node.inputs[0], node.outputs[0]
    rank = len(sizes(source))
    for after, before in enumerate(node.attributes.get_ints("perm", list(range(rank))[::-1])):
        coupling.tie(coupling.ids(source, before), coupling.ids(output, after))
    return True


def shape(node: ir.Node, coupling: Coupling) -> bool:
    """Whoever asks for a size would get another one; with `start` and `end`, only for those axes."""
    source = node.inputs[0]
    rank = len(sizes(source))
    first, last = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
    for axis in range(rank)[first:last]:
        if _is_asked(node, axis - range(rank)[first:last].start):
            coupling.freeze(coupling.ids(source, axis), f"its size is asked by '{node.name}' (Shape)")
    return True


def _is_asked(node: ir.Node, position: int) -> bool:
    """Readers that take single sizes by constant indices ask for no others."""
    readers = [use.node for use in node.outputs[0].uses()]
    indices = [array(input_at(reader, 1)) for reader in readers if reader.op_type == "Gather"]
    if len(indices) < len(readers) or node.outputs[0].is_graph_output():
        return True
    size = (sizes(node.outputs[0]) or [None])[0]
    return any(one is None or size is None or position in np.ravel(one) % size for one in indices)


def _tie_but(source: ir.Value | None, output: ir.Value, moved: tuple[int, ...], coupling: Coupling) -> None:
    for axis in range(len(sizes(output))):
        if axis not in moved:
            coupling.tie(coupling.ids(source, axis), coupling.ids(output, axis))


def _tie_parts(parts: list[Ids | None], whole: Ids | None, coupling: Coupling) -> None:
    known = [part for part in parts if part is not None]
    if len(known) == len(parts):
        coupling.tie(np.concatenate(known), whole)
        return
    for ids in (*known, whole):
        coupling.freeze(ids, "joined with an axis of unknown size")


def _write_split(node: ir.Node, parts: list[Ids], kept: Kept) -> None:
    counts = np.array([kept(part).sum() for part in parts], np.int64)
    if counts.tolist() == [len(part) for part in parts]:
        return
    if "split" in node.attributes:
        node.attributes["split"] = ir.AttrInt64s("split", counts.tolist())
        return
    node.attributes.pop("num_outputs", None)
    own_input(node, 1, counts, f"{node.name}.split")


def _write_slice(node: ir.Node, axis: int, before: Ids, taken: Ids, kept: Kept) -> None:
    """A range without steps stays one; anything else becomes the whole axis and a Gather behind."""
    if kept(before).all():
        return
    positions = _positions(before, taken, kept)
    steps = np.diff(positions)
    if (steps == 1).all():
        _write_range(node, axis, int(positions[0]), int(positions[-1]) + 1)
        return
    _write_range(node, axis, 0, _END)
    _insert_gather(node, axis, positions)


def _write_range(node: ir.Node, axis: int, start: int, stop: int) -> None:
    rank = len(sizes(node.inputs[0]))
    starts = array(input_at(node, 1))
    axes = axes_or_all(node, 3, rank)[: 0 if starts is None else len(starts)]
    for index, number in ((1, start), (2, stop), (4, 1)):
        old = array(input_at(node, index))
        numbers = np.ones(len(axes), np.int64) if old is None else old.astype(np.int64)
        numbers[axes.index(axis)] = number
        if old is not None or number != 1:
            own_input(node, index, numbers, f"{node.name}.{('starts', 'ends', '', 'steps')[index - 1]}")


def _insert_gather(node: ir.Node, axis: int, positions: NDArray[np.int64]) -> None:
    graph, output = node.graph, node.outputs[0]
    assert isinstance(graph, ir.Graph), f"node {node.name!r} is in no graph"
    indices = add_initializer(graph, f"{node.name}.indices", positions)
    taken = ir.node("Gather", [output, indices], {"axis": axis}, name=f"{node.name}.gather")
    taken.outputs[0].name, taken.outputs[0].type = f"{output.name}_taken", output.type
    taken.outputs[0].shape = output.shape  # its rank is right; sizes are inferred anew
    output.replace_all_uses_with(taken.outputs[0], replace_graph_outputs=False)
    taken.replace_input_with(0, output)
    graph.insert_after(node, taken)


def _write_pad(node: ir.Node, axis: int, ends: tuple[Ids, Ids], kept: Kept) -> None:
    counts = [int(kept(end).sum()) for end in ends]
    if counts == [len(end) for end in ends]:
        return
    rank = len(sizes(node.inputs[0]))
    old = array(input_at(node, 1))
    amounts = np.array(node.attributes.get_ints("pads", ()) if old is None else old, np.int64)
    position = axes_or_all(node, 3, rank).index(axis)
    amounts[[position, position + len(amounts) // 2]] = counts
    if old is None:
        node.attributes["pads"] = ir.AttrInt64s("pads", amounts.tolist())
    else:
        own_input(node, 1, amounts, f"{node.name}.pads")


def _write_indices(node: ir.Node, ids: Ids, taken: Ids, kept: Kept) -> None:
    if not kept(ids).all():
        own_input(node, 1, _positions(ids, taken, kept), f"{node.name}.indices")


def _positions(ids: Ids, taken: Ids, kept: Kept) -> NDArray[np.int64]:
    """Where the taken elements that stay lie among all that stay."""
    places = np.cumsum(kept(ids)) - 1
    return places[taken[kept(taken)] - ids[0]].astype(np.int64)


RULES = {
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Pad": pad,
    "Gather": gather,
    "Transpose": transpose,
    "Shape": shape,
}
