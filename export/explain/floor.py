"""A network without its layers: what takes time in it and was never a convolution or a matrix product.

What every layer puts out, after the activation that the runtime computes with it, is an input of the graph instead;
all other nodes are there, and what only layers read is an output. Whatever the MACs, this part stays.
"""

from __future__ import annotations

import onnx_ir as ir

from ..candidates import FUSED
from ..graphs import drop_unused_initializers, sizes
from ..layers import is_layer


def without_layers(model: ir.Model) -> ir.Model | None:
    """A copy of a canonical model, for batch 1; None where only layers do any work, or a shape is not known."""
    copy = ir.from_proto(ir.to_proto(model))
    graph = copy.graph
    graph.outputs.clear()
    for node in [node for node in graph if is_layer(node)]:
        last = _computed_with(node)
        value = last.outputs[0]
        if not sizes(value) or None in sizes(value)[1:]:
            return None
        if value.uses():
            shape = ir.Shape([1, *sizes(value)[1:]])
            given = ir.Value(name=f"{value.name}_given", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
            value.replace_all_uses_with(given)
            graph.inputs.append(given)
        graph.remove([node] if last is node else [last, node], safe=True)
    graph.outputs.extend(value for node in graph for value in node.outputs if not value.uses())
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)
    drop_unused_initializers(graph)
    return copy if graph.outputs else None


def _computed_with(layer: ir.Node) -> ir.Node:
    """The activation that the runtime computes with the layer, or the layer itself."""
    readers = [use.node for use in layer.outputs[0].uses()]
    fused = len(readers) == 1 and readers[0].op_type in FUSED and readers[0].inputs[0] is layer.outputs[0]
    return readers[0] if fused else layer
