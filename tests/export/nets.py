"""Write small ONNX networks without torch: nodes and seeded weights, one call an operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
DEAD = (1, 4)


class Net:
    """Nodes and seeded weights, one call an operator; activations are known by name with their channels."""

    def __init__(self, channels: int = 3, spatial: Sequence[int] = (12, 10), seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.channels = {"input": channels}
        self.input_shape = ["batch", channels, *spatial]
        self.more_inputs: dict[str, list[str | int]] = {}

    def weight(self, name: str, numbers: np.ndarray) -> str:
        kind = np.float32 if numbers.dtype.kind == "f" else np.int64
        self.weights[name] = numbers.astype(kind)
        return name

    def op(self, kind: str, *inputs: str, channels: int | None = None, name: str = "", **attributes: Any) -> str:
        output = f"{name or kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name and output, **attributes))
        self.channels[output] = channels or self.channels.get(inputs[0], 1)
        return output

    def conv(
        self,
        x: str,
        name: str,
        out: int,
        kernel: Sequence[int] = (3, 3),
        *,
        bias: bool = True,
        dead: Sequence[int] = (),
        bias_of_dead: float = 0.0,
        group: int = 1,
        **attributes: Any,
    ) -> str:
        fan_in = self.channels[x] // group
        numbers = self.generator.normal(0, (fan_in * np.prod(kernel)) ** -0.5, (out, fan_in, *kernel))
        numbers[list(dead)] = 0
        inputs = [x, self.weight(f"{name}.weight", numbers)]
        if bias:
            shift = self.generator.normal(0, 0.3, out)
            shift[list(dead)] = bias_of_dead
            inputs.append(self.weight(f"{name}.bias", shift))
        if not attributes:
            attributes = {"pads": [size // 2 for size in kernel] * 2}
        return self.op("Conv", *inputs, channels=out, group=group, **attributes)

    def gemm(self, x: str, name: str, fan_in: int, out: int, dead: Sequence[int] = (), trans: int = 1) -> str:
        numbers, shift = self.generator.normal(0, fan_in**-0.5, (out, fan_in)), self.generator.normal(0, 0.3, out)
        numbers[list(dead)], shift[list(dead)] = 0, -1.0
        weight = self.weight(f"{name}.weight", numbers if trans else numbers.T.copy())
        return self.op("Gemm", x, weight, self.weight(f"{name}.bias", shift), channels=out, transB=trans)

    def bn(self, x: str, name: str, dead: Sequence[int] = (), beta_of_dead: float = 0.0) -> str:
        size, normal, uniform = self.channels[x], self.generator.normal, self.generator.uniform
        gamma, beta = uniform(0.5, 2, size) * self.generator.choice([-1, 1], size), normal(0, 0.5, size)
        gamma[list(dead)], beta[list(dead)] = 0, beta_of_dead
        parts = {"weight": gamma, "bias": beta, "mean": normal(0, 1, size), "var": uniform(0.3, 2, size)}
        return self.op(
            "BatchNormalization",
            x,
            *(self.weight(f"{name}.{key}", numbers) for key, numbers in parts.items()),
        )

    def block(self, x: str, name: str, out: int, kernel: Sequence[int] = (3, 3), **dead) -> str:
        """Convolution, BatchNorm, ReLU."""
        return self.op("Relu", self.bn(self.conv(x, name, out, kernel, bias=False), f"bn_{name}", **dead))

    def head(self, x: str) -> str:
        """Global average pool, flatten, classifier, as torch exports them."""
        pooled = self.op("ReduceMean", x, self.weight("axes", np.array([-1, -2])), keepdims=1)
        shape = self.weight("flat", np.array([-1, self.channels[x]]))
        return self.gemm(self.op("Reshape", pooled, shape), "fc", self.channels[x], 5)

    def transposed(self, x: str, name: str, out: int, group: int = 1, **attributes: Any) -> str:
        """A 2×2 transposed convolution of stride 2: twice the size."""
        size = self.channels[x]
        numbers = self.generator.normal(0, size**-0.5, (size, out // group, 2, 2))
        weight = self.weight(f"{name}.weight", numbers)
        bias = self.weight(f"{name}.bias", self.generator.normal(0, 0.3, out))
        options = {"strides": [2, 2], "kernel_shape": [2, 2], "group": group} | attributes
        return self.op("ConvTranspose", x, weight, bias, channels=out, **options)

    def matmul(self, x: str, name: str, fan_in: int, out: int) -> str:
        """x·W + b over the last axis."""
        weight = self.weight(f"{name}.weight", self.generator.normal(0, fan_in**-0.5, (fan_in, out)))
        product = self.op("MatMul", x, weight, channels=out)
        return self.op("Add", product, self.weight(f"{name}.bias", self.generator.normal(0, 0.3, out)))

    def constant(self, numbers: object, name: str = "constant") -> str:
        """A weight under a name of its own."""
        return self.weight(f"{name}_{len(self.weights)}", np.array(numbers))

    def concat(self, *parts: str, axis: int = 1) -> str:
        return self.op("Concat", *parts, channels=sum(self.channels[part] for part in parts), axis=axis)

    def split(self, x: str, *sizes: int, axis: int = 1) -> list[str]:
        parts = [f"split_{len(self.nodes)}_{part}" for part in range(len(sizes))]
        self.nodes.append(helper.make_node("Split", [x, self.constant(list(sizes))], parts, axis=axis))
        self.channels.update(zip(parts, sizes, strict=True))
        return parts

    def pick(self, count: int, width: int) -> list[int]:
        """Random channels, in order."""
        return sorted(self.generator.choice(width, count, replace=False).tolist())

    def kill(self, dead: Sequence[int], *layers: str, bias: float = 0.0) -> None:
        """Zero the filters of layers, or scale and shift of norms, and set their biases."""
        for layer in layers:
            node = next(node for node in self.nodes if f"{layer}.weight" in node.input)
            for filters in self._filters(node, self.weights[f"{layer}.weight"], dead):
                filters[...] = 0
            if f"{layer}.bias" in self.weights:
                self.weights[f"{layer}.bias"][list(dead)] = bias

    def _filters(self, node: onnx.NodeProto, weight: np.ndarray, channels: Sequence[int]) -> list[np.ndarray]:
        """Views of what makes each output channel; a transposed convolution stores in × out of each group."""
        if node.op_type == "MatMul":
            return [weight[:, channel] for channel in channels]
        if node.op_type != "ConvTranspose":
            return [weight[channel : channel + 1] for channel in channels]
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        blocks = weight.reshape(groups, -1, *weight.shape[1:])
        return [blocks[channel // weight.shape[1], :, channel % weight.shape[1]] for channel in channels]

    def model(self, *outputs: str, opset: int = OPSET, functions: Sequence[onnx.FunctionProto] = ()) -> onnx.ModelProto:
        inputs = {"input": self.input_shape} | self.more_inputs
        domains = [helper.make_opsetid("", opset), *(helper.make_opsetid(one.domain, 1) for one in functions)]
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs],
            [numpy_helper.from_array(numbers, name) for name, numbers in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=domains, ir_version=8, functions=functions)
        model = _with_shapes(model)
        for value in model.graph.output:  # onnx infers nothing behind a Loop
            if not value.type.tensor_type.HasField("shape"):
                value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, ["batch", 5]))
        onnx.checker.check_model(model)
        return model


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """onnx infers no shape of a GroupNormalization; an InstanceNormalization takes its place meanwhile."""
    places = [place for place, node in enumerate(model.graph.node) if node.op_type == "GroupNormalization"]
    for place in places:
        model.graph.node[place].op_type = "InstanceNormalization"
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for place in places:
        inferred.graph.node[place].op_type = "GroupNormalization"
    return inferred
