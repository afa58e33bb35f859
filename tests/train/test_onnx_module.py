"""The bridge from ONNX to torch: every operator and every network of the zoo as ONNX Runtime computes it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from rankfold.errors import InputError
from rankfold.export.graphs import with_weights
from rankfold.export.parity import run
from rankfold.runtime.inputs import make_inputs
from rankfold.train.onnx_module import OnnxModule
from rankfold.train.onnx_operators import OPERATORS

from ..export import zoo_declined
from ..export.nets import Net
from ..export.test_zoo import CHANGED, DECLINED

CLOSE = 2e-5  # two float32 implementations that add in another order
I64 = np.int64


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, I64)


IMAGE = (2, 4, 7, 6)
# operator, shape of x, further constant inputs (None: left out), attributes
CASES = [
    *((name, IMAGE, (), {}) for name in (
        "Relu", "Sigmoid", "Tanh", "Abs", "Neg", "Exp", "Reciprocal", "Floor", "Ceil", "Round", "Sign", "Sin", "Cos",
        "Erf", "Softplus", "Softsign", "HardSwish", "Mish", "Identity", "Elu", "LeakyRelu", "HardSigmoid", "Dropout",
        "GlobalAveragePool", "GlobalMaxPool", "Flatten", "Transpose", "Softmax", "LogSoftmax", "Clip",
        "LpNormalization",
    )),
    *((name, IMAGE, (np.abs(np.random.default_rng(1).normal(size=(4, 1, 1))).astype(np.float32) + 0.5,), {})
      for name in ("Add", "Sub", "Mul", "Div", "Min", "Max", "PRelu", "Sum")),
    ("Pow", IMAGE, (np.float32(2),), {}),
    ("Clip", IMAGE, (np.float32(-0.5), np.float32(0.3)), {}),
    ("Gelu", IMAGE, (), {"approximate": "tanh"}),
    ("Conv", IMAGE, (np.ones((6, 4, 3, 3), np.float32) / 9, np.arange(6, dtype=np.float32)),
     {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
    ("Conv", IMAGE, (np.ones((4, 2, 3, 3), np.float32) / 9,),
     {"auto_pad": "SAME_LOWER", "strides": [2, 2], "group": 2}),
    ("Conv", (2, 3, 9), (np.ones((5, 3, 3), np.float32),), {"pads": [1, 1]}),
    ("ConvTranspose", IMAGE, (np.ones((4, 3, 3, 3), np.float32) / 9,), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("Gemm", (3, 5), (np.ones((7, 5), np.float32), np.arange(7, dtype=np.float32)), {"transB": 1, "alpha": 0.5}),
    ("MatMul", (2, 3, 5), (np.ones((5, 4), np.float32),), {}),
    ("MaxPool", IMAGE, (), {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1]}),
    ("MaxPool", IMAGE, (), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", IMAGE, (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", IMAGE, (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("BatchNormalization", IMAGE, tuple(np.linspace(0.5, 2, 4, dtype=np.float32) for _ in range(4)), {}),
    ("InstanceNormalization", IMAGE, tuple(np.linspace(0.5, 2, 4, dtype=np.float32) for _ in range(2)), {}),
    ("LayerNormalization", (2, 3, 8), tuple(np.linspace(0.5, 2, 8, dtype=np.float32) for _ in range(2)), {}),
    *((name, IMAGE, (ints(1, 3),), {"keepdims": keep})
      for name in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2") for keep in (0, 1)),
    ("Reshape", IMAGE, (ints(0, -1, 6),), {}),
    ("Squeeze", (2, 1, 3, 1), (ints(1, -1),), {}),
    ("Unsqueeze", (2, 3), (ints(0, -1),), {}),
    ("Concat", IMAGE, (np.ones((2, 3, 7, 6), np.float32),), {"axis": 1}),
    ("Slice", IMAGE, (ints(1, -1), ints(9, -9), ints(1, 2), ints(2, -2)), {}),
    ("Slice", IMAGE, (ints(0), ints(-1)), {}),
    ("Pad", IMAGE, (ints(0, 1, 2, 0, 0, 1, 0, 3), np.float32(0.5)), {}),
    ("Pad", IMAGE, (ints(0, 0, 2, 1, 0, 0, 1, 3),), {"mode": "reflect"}),
    ("Pad", IMAGE, (ints(1, 2), None, ints(3)), {"mode": "edge"}),
    ("Gather", IMAGE, (np.array([[0, -1], [2, 1]], I64),), {"axis": 1}),
    ("Expand", (2, 1, 3), (ints(2, 4, 3),), {}),
    ("Tile", (2, 3), (ints(2, 2),), {}),
    ("DepthToSpace", IMAGE, (), {"blocksize": 2}),
    ("DepthToSpace", IMAGE, (), {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", (2, 3, 4, 6), (), {"blocksize": 2}),
    ("Resize", IMAGE, (None, np.array([1, 1, 2, 3], np.float32)), {"mode": "nearest",
     "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ("Resize", IMAGE, (None, None, ints(2, 4, 9, 11)), {"mode": "linear"}),
]  # fmt: skip


def graph(operator: str, shape: tuple[int, ...], constants: tuple, attributes: dict) -> onnx.ModelProto:
    names = [f"c{number}" if constant is not None else "" for number, constant in enumerate(constants)]
    stored = [numpy_helper.from_array(np.asarray(c), n) for n, c in zip(names, constants, strict=True) if n]
    learned = numpy_helper.from_array(np.zeros(2, np.float32), "unused")  # so that there is something to tune
    nodes = [helper.make_node(operator, ["x", *names], ["y"], **attributes),
             helper.make_node("Add", ["unused", "unused"], ["z"])]  # fmt: skip
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [onnx.ValueInfoProto(name=name) for name in ("y", "z")]
    opset = 20 if operator == "Gelu" else 18
    made = helper.make_graph(nodes, "one", inputs, outputs, [*stored, learned])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def compared(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> None:
    module = OnnxModule(proto)
    with torch.no_grad():
        found = module({name: torch.from_numpy(array) for name, array in feed.items()})
    for mine, wanted in zip(found, run(proto.SerializeToString(), feed), strict=True):
        scale = max(float(np.abs(wanted).max(initial=0.0)), 1e-6)
        assert mine.shape == wanted.shape
        assert np.abs(mine.numpy() - wanted).max(initial=0.0) <= CLOSE * scale


@pytest.mark.parametrize("case", CASES, ids=[f"{number}-{case[0]}" for number, case in enumerate(CASES)])
def test_an_operator_is_that_of_onnx_runtime(case):
    operator, shape, *_ = case
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    compared(graph(*case), {"x": np.abs(x) + 0.1 if operator in ("Pow", "Reciprocal") else x})


@pytest.mark.parametrize("build", [*CHANGED, *DECLINED], ids=lambda build: build.__name__)
def test_networks_of_the_zoo(build):
    net = Net(spatial=(8, 8))
    topology = build(net)
    functions = [zoo_declined.twice()] if build is zoo_declined.function_body else []
    proto = net.model(*topology.outputs, opset=topology.opset, functions=functions)
    missing = {node.op_type for node in proto.graph.node} - OPERATORS.keys()
    if missing:
        with pytest.raises(InputError, match=f"operator {sorted(missing)[0]}|cannot be tuned"):
            OnnxModule(proto)
        return
    compared(proto, make_inputs(proto, 2, np.random.default_rng(0)))


def test_weights_learn_and_go_back_into_the_graph():
    net = Net(channels=3, spatial=(8, 8))
    proto = net.model(net.head(net.block("input", "a", 8)))
    x = {"input": np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)}
    module = OnnxModule(proto)
    assert set(module.weights()) == {"a.weight", "bn_a.weight", "bn_a.bias", "fc.weight", "fc.bias"}
    (output,) = module({"input": torch.from_numpy(x["input"])})
    output.square().sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            assert parameter.grad is not None
            parameter -= 1e-2 * parameter.grad
    changed = with_weights(proto, module.weights())
    (after,) = module({"input": torch.from_numpy(x["input"])})
    np.testing.assert_allclose(run(changed.SerializeToString(), x)[0], after.detach().numpy(), atol=1e-4)
    assert np.abs(after.detach().numpy() - output.detach().numpy()).max() > 1e-3
    assert [entry.name for entry in changed.graph.initializer] == [entry.name for entry in proto.graph.initializer]


@pytest.mark.parametrize(
    ("operator", "attributes", "says"),
    [
        ("NonZero", {}, "operator NonZero cannot be tuned; known are Abs, Add"),
        ("AveragePool", {"kernel_shape": [2, 2], "ceil_mode": 1}, "AveragePool with ceil_mode or dilations cannot"),
    ],
)
def test_what_is_not_covered_is_said(operator, attributes, says):
    with pytest.raises(InputError, match=says):
        OnnxModule(graph(operator, IMAGE, (), attributes))({"x": torch.zeros(IMAGE)})
