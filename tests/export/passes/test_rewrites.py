"""Exact rewrites: the same numbers from another graph, and hands off what only looks alike."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rankfold.errors import InputError
from rankfold.export.fold import tidy
from rankfold.export.graphs import refresh_shapes, serialize
from rankfold.export.passes.rewrites import convolve_shortcuts, pool_means, rewritten

SHAPE = [2, 4, 9, 7]
BIG = np.iinfo(np.int64).max


def built(*nodes: tuple, constants: dict[str, np.ndarray], opset: int = 17) -> ir.Model:
    """A chain from x (2×4×9×7) to y."""
    made, at = [], "x"
    for index, (operator, inputs, attributes) in enumerate(nodes):
        out = "y" if index == len(nodes) - 1 else f"v{index}"
        made.append(helper.make_node(operator, [at, *inputs], [out], f"n{index}", **attributes))
        at = out
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(numbers, name) for name, numbers in constants.items()],
    )
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    tidy(model)
    refresh_shapes(model)
    return model


def outputs(model: ir.Model) -> np.ndarray:
    content = serialize(model)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    return np.asarray(session.run(None, {"x": x})[0])


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


PIXELS = {"s": ints(0, 0), "e": ints(BIG, BIG), "a": ints(2, 3), "t": ints(2, 2)}
SLICE = ("Slice", ("s", "e", "a", "t"), {})
ROWS = {"s1": ints(0), "e1": ints(9), "a1": ints(-2), "t1": ints(3)}
PAD = ("Pad", ("p",), {"mode": "constant"})
PADS = {"p": ints(0, 2, 0, 0, 0, 2, 0, 0)}

SHORTCUTS = {
    "every second pixel": ([SLICE], PIXELS),
    "and zeros around the channels": ([SLICE, PAD], PIXELS | PADS),
    "zeros first": ([PAD, SLICE], PIXELS | PADS),
    "in two slices, rows by three": (
        [("Slice", ("s1", "e1", "a1", "t1"), {}), SLICE],
        PIXELS | ROWS,
    ),
    "some channels too": (
        [("Slice", ("s2", "e2", "a2", "t2"), {}), SLICE, PAD],
        PIXELS | PADS | {"s2": ints(1), "e2": ints(3), "a2": ints(1), "t2": ints(1)},
    ),
    "zeros by number and axes": (
        [SLICE, ("Pad", ("p3", "z", "a3"), {})],
        PIXELS | {"p3": ints(1, 0), "z": np.zeros((), np.float32), "a3": ints(1)},
    ),
}


@pytest.mark.parametrize("name", SHORTCUTS)
def test_a_shortcut_becomes_one_convolution_with_the_same_outputs(name):
    nodes, constants = SHORTCUTS[name]
    model = built(*nodes, constants=constants, opset=18)
    before = outputs(model)
    assert convolve_shortcuts(model) == 1
    assert [node.op_type for node in model.graph] == ["Conv"]
    np.testing.assert_array_equal(outputs(model), before)
    assert convolve_shortcuts(model) == 0


OTHERS = {
    "no pixel is skipped": ([PAD], PADS),
    "starts at the second pixel": ([SLICE], PIXELS | {"s": ints(1, 1)}),
    "stops early": ([SLICE], PIXELS | {"e": ints(5, 5)}),
    "backwards": ([SLICE], PIXELS | {"s": ints(-1, -1), "e": ints(-BIG, -BIG), "t": ints(-2, -2)}),
    "padded with ones": ([SLICE, ("Pad", ("p", "one"), {})], PIXELS | PADS | {"one": np.ones((), np.float32)}),
    "padded in space": ([SLICE, PAD], PIXELS | {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)}),
    "reflected": ([SLICE, ("Pad", ("p",), {"mode": "reflect"})], PIXELS | PADS),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_looks_like_a_shortcut_keeps_its_outputs(name):
    nodes, constants = OTHERS[name]
    model = built(*nodes, constants=constants)
    before = outputs(model)
    convolve_shortcuts(model)
    np.testing.assert_array_equal(outputs(model), before)
    assert nodes[-1][0] in [node.op_type for node in model.graph]


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [17, 18])
def test_a_mean_over_pixels_becomes_pooling(keepdims, opset):
    node = ("ReduceMean", (), {"axes": [2, 3], "keepdims": keepdims})
    if opset == 18:
        node = ("ReduceMean", ("a",), {"keepdims": keepdims})
    model = built(node, constants={"a": ints(-1, -2)} if opset == 18 else {}, opset=opset)
    before = outputs(model)
    assert pool_means(model) == 1
    assert "ReduceMean" not in [node.op_type for node in model.graph]
    np.testing.assert_allclose(outputs(model), before, rtol=1e-6, atol=1e-7)
    assert pool_means(model) == 0


@pytest.mark.parametrize("axes", [[1], [2], [1, 2, 3]])
def test_other_means_stay(axes):
    model = built(("ReduceMean", (), {"axes": axes}), constants={})
    assert pool_means(model) == 0


def test_a_rewrite_that_there_is_not_is_one_line():
    with pytest.raises(InputError, match=r"the plan rewrites 'faster'; known are shortcuts .*; plan it again"):
        rewritten(built(SLICE, constants=PIXELS), ["faster"])
