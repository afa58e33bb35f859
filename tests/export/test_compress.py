"""compress in process: what a plan made by hand says is what is written."""

from __future__ import annotations

import onnx

from rankfold.export.compress import Job, Wish
from rankfold.records import Compressed, Plan
from rankfold.runtime.costs import count

from .nets import Net


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
