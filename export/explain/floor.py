"""A network without its layers: what takes time in it and was never a convolution or a matrix product.

What every layer puts out, after what the runtime computes with it, is an input of the graph instead; all other nodes
are there, and what only layers read is an output. Whatever the MACs, this part stays.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...runtime import costs
from ..candidates import FUSED
from ..graphs import add_initializer, copied, drop_unused_initializers, sizes
from ..layers import is_layer


def without_layers(model: ir.Model, *, sums: bool) -> tuple[ir.Model, ir.Model] | None:
    """A copy of a canonical model, and a graph that only takes and gives what that does: to be taken off.

    With `sums` an addition is computed with the layer that feeds it, as the blocked layout has it. An open batch is 1.
    None where only layers do any work, where there are others that multiply, or a shape is not known.
    """
    copy = copied(model)
    graph = copy.graph
    graph.outputs.clear()
    for node in [node for node in graph if is_layer(node)]:
        gone = _computed_with(node, sums)
        value = gone[-1].outputs[0]
        if not sizes(value) or None in sizes(value)[1:]:
            return None
        if value.uses():
            shape = ir.Shape([sizes(value)[0] or 1, *sizes(value)[1:]])
            given = ir.Value(name=f"{value.name}_given", shape=shape, type=value.type)
            value.replace_all_uses_with(given)
            graph.inputs.append(given)
        graph.remove(gone[::-1], safe=True)
    graph.outputs.extend(value for node in graph for value in node.outputs if not value.uses())
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)
    drop_unused_initializers(graph)
    if not graph.outputs or any(None in sizes(value)[1:] or not sizes(value) for value in graph.outputs):
        return None
    return None if costs.count(ir.to_proto(copy)).macs else (copy, _idle(copy))


def _computed_with(layer: ir.Node, sums: bool) -> list[ir.Node]:
    """The layer, and the sum and the activation after it that are no nodes of their own any more."""
    found = [layer]
    for operators in ([("Add", "Sum")] if sums else []) + [FUSED]:
        readers = [use.node for use in found[-1].outputs[0].uses()]
        if len(readers) == 1 and readers[0].op_type in operators and not found[-1].outputs[0].is_graph_output():
            found.append(readers[0])
    return found


def _idle(model: ir.Model) -> ir.Model:
    """The same inputs, unused, and outputs of the same shapes that are constants."""
    copy = copied(model)
    graph = copy.graph
    shapes = [[size or 1 for size in sizes(value)] for value in graph.outputs]
    graph.outputs.clear()
    graph.remove(list(graph)[::-1], safe=True)
    for number, shape in enumerate(shapes):
        zeros = add_initializer(graph, f"zeros_{number}", np.zeros(shape, np.float32))
        node = ir.node("Identity", [zeros], name=f"idle_{number}")
        made = node.outputs[0]
        made.name, made.shape, made.type = f"idle_{number}", ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        graph.append(node)
        graph.outputs.append(made)
    drop_unused_initializers(graph)
    return copy
