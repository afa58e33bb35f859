"""An ONNX graph as a torch module whose parameters are the graph's own weights, and the way back into the graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from ..errors import InputError
from .onnx_operators import OPERATORS, Call

# Which inputs of which operators learn: weights, biases, scales and shifts; statistics and constants stay.
_LEARN = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "Add": (0, 1),
    "PRelu": (1,),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2),
}


class OnnxModule(nn.Module):
    """Runs a graph's nodes in order. Raises InputError for operators and types that are not covered."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        super().__init__()
        graph = proto.graph
        opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
        read = {name for node in graph.node for name in node.input} | {entry.name for entry in graph.output}
        self._calls = [(node, _call(node, opset, read)) for node in graph.node]
        learning = _learning(proto)
        self._places: dict[str, str] = {}
        self._constants: dict[str, Tensor] = {}
        for number, entry in enumerate(graph.initializer):
            tensor = torch.from_numpy(np.array(numpy_helper.to_array(entry)))
            if entry.name in learning and tensor.dtype == torch.float32:
                self._places[entry.name] = f"weight_{number}"
                self.register_parameter(f"weight_{number}", nn.Parameter(tensor))
            else:
                self._constants[entry.name] = tensor
        known = {entry.name for entry in graph.initializer}
        self.inputs = [entry.name for entry in graph.input if entry.name not in known]
        self.outputs = [entry.name for entry in graph.output]
        if not self._places:
            raise InputError("the model has no float32 weights to tune")

    def forward(self, feed: Mapping[str, Tensor]) -> list[Tensor]:
        """The graph's outputs for its inputs by name."""
        values = self.values(feed)
        return [values[name] for name in self.outputs]

    def values(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every value of the graph by name."""
        values: dict[str, Tensor] = {name: getattr(self, place) for name, place in self._places.items()}
        values |= self._constants | dict(feed)
        for node, call in self._calls:
            found = OPERATORS[call.operator](call, *(values[name] if name else None for name in node.input))
            outputs = found if isinstance(found, tuple | list) else (found,)
            values.update(zip(node.output, outputs, strict=False))
        return values

    def layer_inputs(self) -> list[str]:
        """What convolutions and matrix products read; each once."""
        layers = [node for node, _ in self._calls if node.op_type in ("Conv", "Gemm", "MatMul")]
        known = self._places.keys() | self._constants.keys()
        return list(dict.fromkeys(name for node in layers for name in node.input if name and name not in known))

    def weights(self) -> dict[str, np.ndarray]:
        """What has been learned, by the name of the initialiser."""
        return {name: getattr(self, place).detach().cpu().numpy() for name, place in self._places.items()}


def _call(node: onnx.NodeProto, opset: int, read: set[str]) -> Call:
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise InputError(
            f"node '{node.name}': operator {name} cannot be tuned; known are {', '.join(sorted(OPERATORS))}"
        )
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    used = max((number for number, name in enumerate(node.output, 1) if name in read), default=1)
    return Call(node.op_type, attributes, len(node.output) if node.op_type == "Split" else used, opset)


def _learning(proto: onnx.ModelProto) -> set[str]:
    wide = {entry.name for entry in proto.graph.initializer if len(entry.dims) and max(entry.dims) > 1}
    return {
        node.input[index]
        for node in proto.graph.node
        for index in _LEARN.get(node.op_type, ())
        if index < len(node.input) and node.input[index] in wide
    }
