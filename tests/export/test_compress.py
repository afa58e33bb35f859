"""compress in process: what a plan made by hand says is what is written."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from rankfold.errors import InputError
from rankfold.export.budget import Budget
from rankfold.export.compress import Job
from rankfold.export.parity import run
from rankfold.export.wish import Wish
from rankfold.records import Compressed, Plan
from rankfold.runtime.costs import count

from .nets import Net
from .test_budget import device, watch_on


def test_unequal_ranks_by_hand_are_carried_out_and_counted(tmp_path):
    net = Net(channels=3, spatial=(8, 8))
    onnx.save(net.model(net.head(net.block(net.block("input", "a", 16), "b", 24))), tmp_path / "net.onnx")
    decision = {"form": "tucker-2", "ranks": [3, 7], "reason": "by hand", "macs": 1}
    plan = Plan.model_validate({"format": 1, "tile": 1, "layers": {"b": decision}})
    summary, *_, model = Job(Wish(plan=plan)).into(tmp_path, tmp_path / "net.onnx", "small.onnx")
    written = onnx.load(tmp_path / model)
    shapes = {one.name: tuple(one.dims) for one in written.graph.initializer}
    assert [shapes[f"b_{part}.weight"] for part in "vcu"] == [(3, 16, 1, 1), (7, 3, 3, 3), (24, 7, 1, 1)]
    decided, dense = Compressed.read(tmp_path / summary).plan.layers["b"], count(tmp_path / "net.onnx").macs
    assert decided.macs is not None
    assert dense is not None
    assert count(tmp_path / model).macs == dense - 24 * 16 * 9 * 64 + decided.macs


@pytest.mark.parametrize("with_data", [False, True])
def test_layers_that_share_a_weight_are_each_replaced(tmp_path, with_data):
    """Siamese branches: one kernel, two convolutions that see other inputs."""
    net = Net(channels=8, spatial=(10, 10))
    kernel = net.weight("shared", net.generator.normal(size=(16, 8, 3, 3)))
    one = net.op("Conv", "input", kernel, channels=16, name="a", pads=[1, 1, 1, 1])
    two = net.op("Conv", net.op("Abs", "input"), kernel, channels=16, name="b", pads=[1, 1, 1, 1])
    x = net.block(net.op("Relu", net.op("Add", one, two)), "last", 16)
    onnx.save(net.model(net.head(x)), tmp_path / "net.onnx")
    data = np.random.default_rng(0).normal(size=(64, 8, 10, 10)).astype(np.float32)
    np.savez(tmp_path / "data.npz", input=data)
    ranks = {one: ("channel", 16), two: ("spatial", 24)}  # full: the layers are reproduced
    layers = {
        name: {"form": form, "ranks": [rank], "reason": "by hand", "macs": 1} for name, (form, rank) in ranks.items()
    }
    wish = Wish(plan=Plan.model_validate({"format": 1, "tile": 1, "layers": layers}))
    job = Job(wish, data=tmp_path / "data.npz" if with_data else None)
    *_, model = job.into(tmp_path, tmp_path / "net.onnx", "small.onnx")
    names = {node.name for node in onnx.load(tmp_path / model).graph.node}
    assert {f"{name}_{part}" for name in ranks for part in "vu"} <= names
    wanted, found = (run((tmp_path / name).read_bytes(), {"input": data})[0] for name in ("net.onnx", model))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_model_with_external_data_is_timed_as_one_file(tmp_path):
    """What is timed lies in a folder of its own, without the model's data beside it."""
    net = Net(channels=8, spatial=(12, 12))
    outside = {"save_as_external_data": True, "location": "net.onnx.data", "size_threshold": 100}
    onnx.save(net.model(net.head(net.block(net.block("input", "a", 32), "b", 32))), tmp_path / "net.onnx", **outside)
    job = Job(Wish(time=Budget(share=0.6)), watch=watch_on(device(), tmp_path))
    summary, *_ = job.into(tmp_path, tmp_path / "net.onnx", "small.onnx")
    timing = Compressed.read(tmp_path / summary).plan.timing
    assert timing is not None
    assert timing.measured is not None
    assert timing.measured == pytest.approx(timing.screened, rel=0.02)
    assert timing.screened <= 0.6


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (31, {"wish": Wish(time=Budget(drop=0.01))}, r"--max-drop: expected --data with 32 inputs or more, found 31"),
        (32, {"wish": Wish(time=Budget(drop=0.01))}, r"--max-drop: expected a model that puts out class scores"),
        (1, {"wish": Wish(time=Budget(share=0.5)), "frontier": True}, r"--frontier: expected --data with 32 inputs"),
    ],
)
def test_what_could_not_be_judged_is_refused_before_anything_is_timed(tmp_path, count, options, message):
    net = Net(channels=8, spatial=(12, 12))
    onnx.save(net.model(net.block(net.block("input", "a", 16), "b", 16)), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", input=np.ones((count, 8, 12, 12), np.float32))
    board = device()
    job = Job(data=tmp_path / "data.npz", watch=watch_on(board, tmp_path), **options)
    board.launches = 0
    with pytest.raises(InputError, match=message):
        job.into(tmp_path, tmp_path / "net.onnx", "small.onnx")
    assert board.launches == 0
