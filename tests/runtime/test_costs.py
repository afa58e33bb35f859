from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rankfold.errors import InputError
from rankfold.runtime import costs
from rankfold.runtime.costs import Costs, LayerCost

from .conftest import save_convolution


def model_of(
    nodes: list[onnx.NodeProto],
    weights: dict[str, tuple[int, ...]],
    shape: list[int | str | None],
    domain: str = "",
) -> onnx.ModelProto:
    """Input x of `shape`, output y, float32 initialisers of the shapes given."""
    tensors = [numpy_helper.from_array(np.ones(s, np.float32), name) for name, s in weights.items()]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def node(kind: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), ["y"], name="n", **attributes)


@pytest.mark.parametrize(
    ("made", "weights", "shape", "macs"),
    [
        (node("Conv", "x", "w", "b"), {"w": (8, 3, 3, 3), "b": (8,)}, ["N", 3, 10, 12], 8 * 10 * 8 * 27),
        (node("Conv", "x", "w", group=4, pads=[1, 1, 1, 1]), {"w": (8, 1, 3, 3)}, [1, 4, 5, 5], 8 * 25 * 9),
        (node("Conv", "x", "w", strides=[2]), {"w": (6, 4, 3)}, [1, 4, 9], 6 * 4 * 12),
        (node("Conv", "x", "w"), {"w": (2, 3, 2, 2, 2)}, [1, 3, 4, 4, 4], 2 * 27 * 24),
        (node("ConvTranspose", "x", "w", strides=[2, 2]), {"w": (4, 6, 2, 2)}, [1, 4, 5, 5], 100 * 24),
        (node("Gemm", "x", "w"), {"w": (7, 5)}, ["N", 7], 35),
        (node("Gemm", "x", "w", transB=1), {"w": (5, 7)}, [None, 7], 35),
        (node("Gemm", "x", "w", transA=1), {"w": (7, 5)}, [7, 3], 3 * 7 * 5),
        (node("MatMul", "x", "w"), {"w": (7, 5)}, ["N", 4, 7], 4 * 35),
        (node("MatMul", "x", "w"), {"w": (7,)}, [4, 7], 28),
        (node("Relu", "x"), {}, ["N", 3], 0),
    ],
)  # fmt: skip
def test_macs_and_parameters_of_one_node(
    made: onnx.NodeProto, weights: dict[str, tuple[int, ...]], shape: list[int | str | None], macs: int
):
    parameters = sum(int(np.prod(s)) for s in weights.values())
    found = costs.count(model_of([made], weights, shape))
    assert (found.macs, found.parameters) == (macs, parameters)
    assert found.layers == ({} if made.op_type == "Relu" else {"n": LayerCost(macs, parameters)})


@pytest.mark.parametrize(
    "made",
    [
        model_of([node("Conv", "x", "w")], {"w": (8, 3, 3, 3)}, [1, 3, "height", 8]),
        model_of([node("Einsum", "x", "w", equation="ij,jk->ik")], {"w": (3, 3)}, [1, 3]),
        model_of([helper.make_node("FusedGemm", ["x", "w"], ["y"], domain="com.microsoft")],
                 {"w": (3, 3)}, [1, 3], "com.microsoft"),
    ],
    ids=["open-height", "no-rule", "other-domain"],
)  # fmt: skip
def test_what_cannot_be_counted_is_none_and_not_too_small(made: onnx.ModelProto):
    found = costs.count(made)
    assert found.macs is None
    assert found.parameters > 0


def test_shapes_through_a_computed_reshape_are_found():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["y"], name="fc"),
    ]
    model = model_of(nodes, {"w": (12, 5)}, ["batch", 3, 2, 2])
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.array([0]), "zero"), numpy_helper.from_array(np.array([12]), "rest")]
    )
    assert costs.count(model) == Costs(60, 60, {"fc": LayerCost(60, 60)})


def test_shared_weights_count_once_unused_ones_not_and_stale_shapes_are_ignored():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    model = model_of(nodes, {"w": (4, 4), "unused": (9,)}, ["N", 4])
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [64, 4]))
    before = model.SerializeToString()
    found = costs.count(model)
    assert (found.macs, found.parameters) == (32, 16)
    assert list(found.layers) == ["h", "y"]
    assert model.SerializeToString() == before


def test_a_file_is_counted_like_the_model_in_it(tmp_path: Path):
    path = save_convolution(tmp_path / "c.onnx", channels=8, size=16)
    macs = 8 * 3 * 9 * 16 * 16
    assert costs.count(path) == Costs(macs, 216, {"conv": LayerCost(macs, 216)})


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "cannot read .*No such file"),
        (b"", "found no graph with nodes"),
        (b"this is text, not a model", "not an ONNX file, or cut short"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes | None, match: str):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=match):
        costs.load(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_model_is_refused(convolution: Path, share: float):
    whole = convolution.read_bytes()
    convolution.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"convolution\.onnx: "):
        costs.load(convolution)
