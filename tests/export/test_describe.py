"""What `rankfold model` says of a file, and the runtime's rules behind it, held against the runtime itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from rankfold.devices.local import LocalTransport
from rankfold.devices.probe import facts
from rankfold.errors import InputError
from rankfold.export.describe import described_json
from rankfold.export.fastpaths import misses
from rankfold.export.graphs import load
from rankfold.runtime.inputs import Given

from .written import OPEN, parsed


def _described(path: Path, layout: str = "nchwc", tile: int = 8, given: Given | None = None) -> dict:
    return json.loads(described_json(path, layout=layout, tile=tile, given=given))


def test_layers_costs_ranks_and_channels(tmp_path, net):
    builder = net()
    x = builder.block("input", "a", 8, dead=(1, 4))
    x = builder.op("Relu", builder.conv(x, "b", 6))
    low = builder.weights["b.weight"]
    low[:] = np.einsum("or,rihw->oihw", np.ones((6, 2)), low[:2]) + 0  # rank 1: every filter is the same sum
    low[0, 0, 0, 0] = 1e-41
    builder.weights["a.weight"][0] *= 2
    onnx.save(builder.model(builder.head(x)), tmp_path / "net.onnx")
    found = _described(tmp_path / "net.onnx")
    rows = {row["name"]: row for row in found["layers"]}
    assert {name: row["macs"] for name, row in rows.items()} == {"a": 8 * 27 * 120, "b": 6 * 72 * 120, "fc": 30}
    assert {name: row["parameters"] for name, row in rows.items()} == {"a": 216, "b": 438, "fc": 35}
    assert rows["a"]["spectrum"] == {"rank": 6, "full_rank": 8, "rank_90": rows["a"]["spectrum"]["rank_90"]}
    assert rows["b"]["spectrum"]["rank_90"] == 1
    assert found["groups"]["a"]["kept"] == [0, 2, 3, 5, 6, 7]
    assert found["inputs"] == {"input": "float32 batch×3×12×10"}
    assert (found["denormals"], found["opset"], found["macs"]) == (1, 18, 8 * 27 * 120 + 6 * 72 * 120 + 30)
    assert found["nodes"]["Conv"] == 2


def test_open_sizes_leave_costs_unknown_until_they_are_given(tmp_path):
    onnx.save(parsed(OPEN), tmp_path / "open.onnx")
    assert _described(tmp_path / "open.onnx")["macs"] is None
    sized = _described(tmp_path / "open.onnx", given=Given(shapes={"image": (1, 3, 10, 8)}))
    assert sized["macs"] == 8 * 27 * 80 + 4 * 8 * 80 + 6 * 4
    with pytest.raises(InputError, match="--shape names no input 'x'"):
        _described(tmp_path / "open.onnx", given=Given(shapes={"x": (1, 3)}))


# --- the runtime's rules ------------------------------------------------------------------------------------

# name, operator, channels in, filters, groups, kernel
CASES = [
    ("plain", "Conv", 32, 32, 1, 3),
    ("first", "Conv", 3, 32, 1, 3),
    ("odd_input", "Conv", 33, 32, 1, 3),
    ("four", "Conv", 36, 32, 1, 1),
    ("padded", "Conv", 32, 33, 1, 3),
    ("depthwise", "Conv", 32, 32, 32, 3),
    ("odd_depthwise", "Conv", 36, 36, 36, 3),
    ("grouped", "Conv", 64, 64, 2, 3),
    ("odd_grouped", "Conv", 48, 48, 4, 3),
]


def _convolution(path: Path, fan_in: int, out: int, groups: int, kernel: int) -> Path:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(out, fan_in // groups, kernel, kernel)).astype(np.float32)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=groups, pads=[kernel // 2] * 4)],
        "one",
        [value("x", TensorProto.FLOAT, [1, fan_in, 12, 12])],
        [value("y", TensorProto.FLOAT, [1, out, 12, 12])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def blocked():
    """This machine's block, where its runtime has blocked kernels."""
    with LocalTransport().launch() as process:
        found = facts(process)
    if found.layout != "nchwc":
        pytest.skip("this machine's runtime has no blocked layout to compare with")
    return found.tile


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_what_is_called_plain_is_what_the_runtime_leaves_plain(tmp_path, blocked, case):
    path = _convolution(tmp_path / "one.onnx", *case[2:])
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    runs_blocked = any(node.domain == "com.microsoft.nchwc" for node in optimised.graph.node)
    said = misses(load(path).graph, "nchwc", blocked)
    assert ("plain layout" not in "".join(miss.why for miss in said)) == runs_blocked, said


@pytest.mark.parametrize(
    ("fan_in", "out", "groups", "kernel", "why"),
    [
        (16, 16, 1, 3, None),
        (16, 18, 1, 3, "18 filters are no multiple of 4"),
        (16, 16, 16, 3, None),
        (16, 16, 16, 5, "depthwise 5×5 with stride 1×1: only 3×3 with stride 1 has its own kernel"),
        (16, 16, 4, 3, "4 groups: copied and multiplied one by one"),
    ],
)
def test_the_plain_layout_has_rules_of_its_own(tmp_path, fan_in, out, groups, kernel, why):
    path = _convolution(tmp_path / "one.onnx", fan_in, out, groups, kernel)
    said = [miss.why for miss in misses(load(path).graph, "nchw", 4)]
    assert len(said) == (why is not None)
    assert why is None or why in said[0]
