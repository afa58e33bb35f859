"""explain, on devices whose causes are known: which bar comes first, what adds up, what is suggested and made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rankfold.devices import probe
from rankfold.errors import InputError
from rankfold.export import explain as explaining
from rankfold.export.explain import explain, make_into
from rankfold.export.explain.causes import Original, changes, in_turn
from rankfold.export.fold import tidy
from rankfold.export.graphs import refresh_shapes
from rankfold.export.passes.factorize import factorize
from rankfold.records import LayerDecision, Parity
from rankfold.runtime.latency import Stopwatch, stopwatch
from rankfold.runtime.turns import Options

from ...runtime.fake_device import FakeDevice
from ..nets import Net
from ..test_budget import STAIR, stairs
from .test_matching import network

SLOW = 1e-3  # seconds that a planted cause costs on the fake device


def watch_on(device: FakeDevice, folder: Path) -> Stopwatch:
    with device.launch() as process:
        facts = probe.facts(process).model_copy(update={"tile": STAIR})
    return stopwatch(device, facts, Options(), folder / "table.sqlite")


def planted(path: Path) -> float:
    """The stairs of test_budget; a transposition and a network with denormal weights take longer."""
    model = onnx.load(path)
    arrays = (onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer if entry.data_type == 1)
    tiny = np.finfo(np.float32).tiny
    denormal = any(((np.abs(a) < tiny) & (a != 0)).any() for a in arrays)
    return stairs(path) + SLOW * denormal + SLOW * sum(node.op_type == "Transpose" for node in model.graph.node)


@pytest.fixture
def watch(tmp_path) -> Stopwatch:
    return watch_on(FakeDevice({}, time_of=planted), tmp_path)


def saved(model: ir.Model | onnx.ModelProto, path: Path) -> Path:
    onnx.save(model if isinstance(model, onnx.ModelProto) else ir.to_proto(model), path)
    return path


def off_tile() -> ir.Model:
    small = network(16, 32, 32)
    factorize(small, {name: LayerDecision(form="spatial", ranks=[STAIR + 1], reason="") for name in ("b", "c")})
    return small


def with_denormals() -> ir.Model:
    made = ir.to_proto(network(16, 32, 32))
    entry = next(entry for entry in made.graph.initializer if entry.name == "b.weight")
    numbers = onnx.numpy_helper.to_array(entry).copy()
    numbers[0] = 1e-40
    entry.CopyFrom(onnx.numpy_helper.from_array(numbers, entry.name))
    return ir.from_proto(made)


def with_transposes() -> onnx.ModelProto:
    net = Net(channels=3, spatial=(16, 16))
    x = net.block(net.block("input", "a", 16), "b", 32)
    x = net.op("Transpose", net.op("Relu", net.op("Transpose", x, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2])
    return net.model(net.head(net.block(x, "c", 32)))


@pytest.mark.parametrize(
    ("second", "cause"),
    [
        (off_tile, "ranks off the tile"),
        (lambda: network(13, 27, 27), "widths off the tile"),
        (with_denormals, "denormals"),
        (with_transposes, "data movement"),
    ],
)
def test_the_planted_cause_comes_first_and_the_sums_agree(tmp_path, watch, second, cause):
    first, other = saved(network(16, 32, 32), tmp_path / "first.onnx"), saved(second(), tmp_path / "second.onnx")
    found = explain(first, other, watch, time_s=0.1)
    assert found.bars[0].cause == cause, found.verdict
    assert found.bars[0].costs.is_clear
    assert found.gap is not None
    assert found.residual is not None
    summed = sum(bar.costs.value for bar in found.bars) + found.residual.value
    assert summed == pytest.approx(found.gap.value, abs=1e-12)
    assert f"first cause: {cause}" in found.verdict


def test_a_change_is_suggested_and_when_made_keeps_its_promise(tmp_path, watch, monkeypatch):
    monkeypatch.setattr(explaining, "_MOST_CONTESTS", 2)
    first, second = saved(network(16, 32, 32), tmp_path / "first.onnx"), saved(off_tile(), tmp_path / "second.onnx")
    found = explain(first, second, watch, time_s=60)
    cut = next(one for one in found.improvements if one.name.endswith(f"{STAIR + 1} → {STAIR}"))
    assert cut.error is not None
    assert 0 < cut.error < 1
    assert cut.command == f"rankfold explain {first} {second} --make '{cut.name}' -o better.onnx"
    folder = tmp_path / "made"
    folder.mkdir()
    files, errors = make_into(folder, first, second, "better.onnx", [cut.name], STAIR)
    assert files == ["better.parity.json", "better.onnx"]
    assert errors == {cut.name: cut.error}
    assert all(check.passed for check in Parity.read(folder / files[0]).checks)
    gained = planted(second) - planted(folder / "better.onnx")
    assert gained == pytest.approx(cut.worth.value, rel=0.02)
    both = next(one for one in found.improvements if one.name == "all ranks cut")
    assert both.worth.value > cut.worth.value
    assert found.together is None or len(found.together.command.split(" --make ")) > 2


def test_the_same_file_twice_makes_no_difference(tmp_path, watch):
    first = saved(network(16, 32, 32), tmp_path / "first.onnx")
    found = explain(first, saved(network(16, 32, 32), tmp_path / "again.onnx"), watch, time_s=0.1)
    assert found.bars == []
    assert found.verdict.startswith("no difference")
    trained = explain(first, saved(network(16, 32, 32, seed=1), tmp_path / "other.onnx"), watch, time_s=0.1)
    assert trained.verdict.startswith("no difference that the MACs do not explain")


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (lambda: network(16, 24, kernel=5), "is no version of .*first.onnx: only"),
        (lambda: Net(channels=4, spatial=(16, 16)), "takes 1×3×16×16 FLOAT, .*takes 1×4×16×16 FLOAT"),
    ],
)
def test_files_that_do_not_belong_together_are_one_line(tmp_path, watch, second, says):
    made = second()
    if isinstance(made, Net):
        made = made.model(made.head(made.block("input", "a", 16)))
    first, other = saved(network(16, 32, 32), tmp_path / "first.onnx"), saved(made, tmp_path / "second.onnx")
    with pytest.raises(InputError, match=says):
        explain(first, other, watch, time_s=0.1)


def test_a_change_that_there_is_not_is_refused_with_those_there_are(tmp_path):
    first, second = saved(network(16, 32, 32), tmp_path / "first.onnx"), saved(off_tile(), tmp_path / "second.onnx")
    with pytest.raises(InputError, match=r"has no such change; there are: .*b 9 → 8"):
        make_into(tmp_path, first, second, "better.onnx", ["b 9 → 7"], STAIR)
    with pytest.raises(InputError, match="no such change after b in one layer; there are"):
        make_into(tmp_path, first, second, "better.onnx", ["b in one layer", "b 9 → 8"], STAIR)


def test_changes_in_turn_leave_out_what_an_earlier_one_took(tmp_path):
    """A shortcut that begins with a Slice of everything: it can be taken out, or rewritten with all that follows."""
    net = Net(channels=3, spatial=(16, 16))
    x = net.block("input", "a", 16)
    for at, (axis, step) in enumerate([(2, 1), (2, 2), (3, 2)]):
        end = net.constant([np.iinfo(np.int64).max])
        x = net.op("Slice", x, net.constant([0]), end, net.constant([axis]), net.constant([step]), name=f"s{at}")
    model = ir.from_proto(net.model(net.head(x)))
    tidy(model)
    refresh_shapes(model)
    original, rewritten = Original(model), "shortcuts as strided convolutions"
    (taken,) = (name for name in changes(model, original, STAIR) if name.startswith("without s0"))
    assert rewritten in changes(model, original, STAIR)
    assert in_turn(model, [rewritten, taken], original, STAIR, 2) == {rewritten: None}
