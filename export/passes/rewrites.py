"""Exact rewrites that a runtime may run faster; which ones it does is measured, not assumed.

Requires: constants as initialisers, shapes inferred, channels folded (a shortcut that has become a convolution couples
no channels any more). Ensures: the same function, but for how infinite and NaN activations spread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...errors import InputError
from ..graphs import add_initializer, array, input_at, refresh_shapes, replace_node, sizes, unique


def convolve_shortcuts(model: ir.Model) -> int:
    """Every n-th pixel by Slice and new zero channels by Pad (option A of He et al. 2016) become one strided 1×1
    convolution with ones on a diagonal: Slice and Pad force a blocked layout back and forth. Returns how many.
    """
    found = [(last, chosen) for last in list(model.graph) if (chosen := _selection_of(last)) is not None]
    for last, chosen in found:
        _convolve(last, chosen, model.graph)
    if found:
        refresh_shapes(model)
    return len(found)


def pool_means(model: ir.Model) -> int:
    """ReduceMean over all pixels becomes GlobalAveragePool, which has a kernel in the blocked layout."""
    found = [node for node in list(model.graph) if _is_mean_of_pixels(node)]
    for node in found:
        _pool(node, model.graph)
    if found:
        refresh_shapes(model)
    return len(found)


REWRITES: Mapping[str, Callable[[ir.Model], int]] = {
    "shortcuts as strided convolutions": convolve_shortcuts,
    "means as pooling": pool_means,
}


def rewritten(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """The model after the rewrites of these names, in place. Raises InputError for a name that there is not."""
    for name in names:
        if name not in REWRITES:
            raise InputError(f"the plan rewrites '{name}'; known are {', '.join(REWRITES)}; plan it again")
        REWRITES[name](model)
    return model


# --- selections of pixels and channels ----------------------------------------------------------------------


@dataclass
class _Selection:
    """What a chain of Slice and Pad puts out as channel k: `source`'s channel `channels[k]`, zeros for −1, at every
    `strides`-th pixel.
    """

    source: ir.Value
    channels: list[int]
    strides: list[int]


def _selection_of(last: ir.Node) -> _Selection | None:
    """The selection that ends here, if it skips pixels: one that only drops channels is cheap where it is."""
    if last.op_type not in ("Slice", "Pad") or last.domain:
        return None
    if any(_is_step(use.node) for use in last.outputs[0].uses()):
        return None  # the chain goes on
    chain, value = [last], last.inputs[0]
    while value is not None and (before := value.producer()) is not None and _is_step(before):
        if len(value.uses()) > 1 or value.is_graph_output():
            break
        chain.append(before)
        value = before.inputs[0]
    shape = sizes(value)
    if value is None or len(shape) != 4 or None in shape[1:]:
        return None
    chosen = _Selection(value, list(range(shape[1] or 0)), [1, 1])
    extent = [shape[2] or 0, shape[3] or 0]
    for node in reversed(chain):
        if not (_slice(node, chosen, extent) if node.op_type == "Slice" else _pad(node, chosen)):
            return None
    return chosen if max(chosen.strides) > 1 and any(channel >= 0 for channel in chosen.channels) else None


def _is_step(node: ir.Node) -> bool:
    return node.op_type in ("Slice", "Pad") and not node.domain


def _slice(node: ir.Node, chosen: _Selection, extent: list[int]) -> bool:
    given = [array(input_at(node, index)) for index in range(1, 5)]
    starts, ends, axes, steps = given
    if starts is None or ends is None or any(input_at(node, k) is not None and given[k - 1] is None for k in (3, 4)):
        return False
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    for axis, start, end, step in zip(axes.tolist(), starts.tolist(), ends.tolist(), steps.tolist(), strict=True):
        axis %= 4
        if axis == 1:
            chosen.channels = chosen.channels[start:end:step] if step > 0 else []
            continue
        if axis == 0:
            if (start, step) != (0, 1) or end < np.iinfo(np.int32).max:
                return False
            continue
        size = extent[axis - 2]
        if start not in (0, -size) or step < 1 or (end if end >= 0 else end + size) < size:
            return False
        chosen.strides[axis - 2] *= step
        extent[axis - 2] = -(-size // step)
    return bool(chosen.channels)


def _pad(node: ir.Node, chosen: _Selection) -> bool:
    pads, number, axes = (array(input_at(node, index)) for index in (1, 2, 3))
    if pads is None or node.attributes.get_string("mode", "constant") != "constant":
        return False
    if (input_at(node, 2) is not None and number is None) or (number is not None and float(number.reshape(-1)[0]) != 0):
        return False
    if input_at(node, 3) is not None:
        if axes is None:
            return False
        full = np.zeros(8, np.int64)
        full[np.concatenate([axes % 4, axes % 4 + 4])] = pads
        pads = full
    before, after = pads.tolist()[1], pads.tolist()[5]
    if len(pads) != 8 or before < 0 or after < 0 or pads.sum() != before + after:
        return False
    chosen.channels = [-1] * before + chosen.channels + [-1] * after
    return True


def _convolve(last: ir.Node, chosen: _Selection, graph: ir.Graph) -> None:
    into = sizes(chosen.source)[1] or 0
    kernel = np.zeros((len(chosen.channels), into, 1, 1), np.float32)
    rows = [row for row, channel in enumerate(chosen.channels) if channel >= 0]
    kernel[rows, [chosen.channels[row] for row in rows]] = 1
    name = unique(f"{last.name or 'shortcut'}_conv", {node.name for node in graph})
    weight = add_initializer(graph, f"{name}.weight", kernel)
    made = ir.node("Conv", [chosen.source, weight], {"kernel_shape": [1, 1], "strides": chosen.strides}, name=name)
    replace_node(last, made)


def _is_mean_of_pixels(node: ir.Node) -> bool:
    if node.op_type != "ReduceMean" or node.domain or len(sizes(node.inputs[0])) != 4:
        return False
    listed = node.attributes.get_ints("axes", ()) if input_at(node, 1) is None else array(input_at(node, 1))
    return listed is not None and sorted(int(axis) % 4 for axis in listed) == [2, 3]


def _pool(node: ir.Node, graph: ir.Graph) -> None:
    pooled = ir.node("GlobalAveragePool", [node.inputs[0]], name=f"{node.name}_pool")
    pooled.outputs[0].name, pooled.outputs[0].type = f"{node.name}_pooled", node.outputs[0].type
    if node.attributes.get_int("keepdims", 1):
        replace_node(node, pooled)
        return
    graph.insert_before(node, pooled)
    replace_node(node, ir.node("Flatten", [pooled.outputs[0]], {"axis": 1}, name=node.name))
