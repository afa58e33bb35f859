"""Write a channel shuffle (ShuffleNet, Zhang et al. 2018) as one Gather of channels.

Requires: constants as initialisers, shapes inferred. Ensures: no Reshape, Transpose, Reshape that only permutes the
channels of n×c×…. A reshape to groups × channels could lose whole rows and columns only; a list of channels loses any
of them. Exact: the same numbers in the same places. Idempotent.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from ..graphs import add_initializer, refresh_shapes, remove_node, sizes


def gather_shuffles(model: ir.Model) -> int:
    """Rewrite in place; returns how many shuffles there were."""
    found = [(last, first) for last in list(model.graph) if (first := _start_of_shuffle(last)) is not None]
    for last, first in found:
        _rewrite(last, first, model.graph)
    if found:
        refresh_shapes(model)
    return len(found)


def _start_of_shuffle(last: ir.Node) -> ir.Node | None:
    """The first Reshape of n×c×s → n×g×k×s → n×k×g×s → n×c×s, if `last` is the second."""
    swap = _only_producer(last, "Transpose")
    first = None if swap is None else _only_producer(swap, "Reshape")
    if last.op_type != "Reshape" or last.domain or swap is None or first is None:
        return None
    before, apart, after = sizes(first.inputs[0])[1:], sizes(first.outputs[0])[1:], sizes(last.outputs[0])[1:]
    if None in before or None in apart or before != after or len(before) < 1 or len(apart) < 2:
        return None
    is_swap = list(swap.attributes.get_ints("perm", ())) == [0, 2, 1, *range(3, len(apart) + 1)]
    same = _product(apart[:2]) == before[0] and _product(apart[2:]) == _product(before[1:])
    return first if is_swap and same else None


def _only_producer(node: ir.Node, operator: str) -> ir.Node | None:
    """The node's first input's producer, if it is such an operator and nobody else reads it."""
    source = node.inputs[0] if node.inputs else None
    producer = None if source is None or source.is_graph_output() else source.producer()
    if source is None or producer is None or producer.op_type != operator or producer.domain or len(source.uses()) > 1:
        return None
    return producer


def _rewrite(last: ir.Node, first: ir.Node, graph: ir.Graph) -> None:
    groups, size = (count or 1 for count in sizes(first.outputs[0])[1:3])
    order = np.arange(groups * size, dtype=np.int64).reshape(groups, size).T.reshape(-1)
    indices = add_initializer(graph, f"{last.name or 'shuffle'}.order", order)
    output, swap = last.outputs[0], last.predecessors()[0]
    gather = ir.node("Gather", [first.inputs[0], indices], {"axis": 1}, name=last.name)
    gather.outputs[0].name, gather.outputs[0].type = f"{output.name}_shuffled", output.type
    gather.outputs[0].shape = output.shape
    graph.insert_before(last, gather)
    remove_node(last, gather.outputs[0])
    graph.remove([swap, first], safe=True)


def _product(shape: list[int | None]) -> int:
    return prod(size for size in shape if size is not None)
