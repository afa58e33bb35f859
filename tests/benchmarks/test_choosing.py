"""The benchmark of choosing: its networks, its neighbours, its rows, its questions on a device that is not there."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from rankfold.benchmarks import choosing, questions, shapes, subject
from rankfold.benchmarks.answers import Answers, Found, markdown
from rankfold.benchmarks.placing import TRIALS, Method, Placed, next_knob
from rankfold.benchmarks.rivals import Rivals
from rankfold.benchmarks.subject import Catalogue, Subject, weights_by_name
from rankfold.devices import probe
from rankfold.errors import InputError
from rankfold.export.candidates import DENSE, Way
from rankfold.export.parity import run
from rankfold.export.search import Draft
from rankfold.export.solve import Option
from rankfold.records import ChoosingRow, LayerDecision
from rankfold.runtime import costs
from rankfold.runtime.latency import stopwatch
from rankfold.runtime.turns import Options

from ..runtime.fake_device import FakeDevice

# torchvision's counts at 224×224: Gigamultiplications, and parameters without the running statistics
PUBLISHED = {"resnet18": (1.814, 11_689_512), "resnet50": (4.089, 25_557_032), "mobilenetv2": (0.301, 3_504_872)}


# --- networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_are_those_published(monkeypatch, name: str):
    monkeypatch.setattr(shapes, "decaying", lambda generator, shape, gain: np.zeros(shape, np.float32))
    model = shapes.SHAPES[name]()
    onnx.checker.check_model(model, full_check=True)
    gmacs, parameters = PUBLISHED[name]
    assert (costs.count(model).macs or 0) / 1e9 == pytest.approx(gmacs, abs=0.001)
    learned = [entry for entry in model.graph.initializer if not entry.name.endswith((".mean", ".var")) and entry.dims]
    assert sum(math.prod(entry.dims) for entry in learned) == parameters


def test_dec3_has_the_weights_of_the_one_that_is_trained():
    from rankfold.train.models.decomposeme import dec3

    model = shapes.dec3()
    learned = [entry for entry in model.graph.initializer if not entry.name.endswith((".mean", ".var"))]
    assert sum(math.prod(entry.dims) for entry in learned) == sum(one.numel() for one in dec3(3, 36).parameters())


@pytest.mark.parametrize("shape", [(24, 16, 3, 3), (64, 8, 1, 1), (10, 40)])
def test_spectra_decay_as_they_should(shape: tuple[int, ...]):
    kernel = shapes.decaying(np.random.default_rng(0), shape, 2.0)
    values = np.linalg.svd(kernel.reshape(shape[0], -1), compute_uv=False)
    k = np.arange(1, len(values) + 1)
    np.testing.assert_allclose(values / values[0], k**-shapes.DECAY, rtol=1e-9)
    assert np.square(kernel).sum() == pytest.approx(2.0 * shape[0])


@pytest.mark.parametrize("made", [shapes.dec3, shapes.resnet18, shapes.mobilenetv2])
def test_activations_keep_their_size(made: Callable[[int], onnx.ModelProto]):
    """So that nothing is denormal, which would cost time."""
    batch = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    (scores,) = run(made(32).SerializeToString(), {"input": batch})
    assert 1e-3 < float(np.std(scores)) < 1e3


# --- neighbours ---------------------------------------------------------------------------------------------


def options_of(costs: Mapping[tuple[str, int], tuple[float, float]]) -> list[Option[Way]]:
    dense = Option(DENSE, {"damage": 0.0, "time": 0.0})
    factored = [
        Option(Way(form, (rank,)), {"damage": damage, "time": time}) for (form, rank), (damage, time) in costs.items()
    ]
    return [dense, *factored]


def test_neighbours_differ_in_one_layer_and_damage_no_more():
    options = {
        "a": options_of({("spatial", r): (1 / r, r / 100 - 0.5) for r in (8, 16, 24)} | {("channel", 8): (0.01, -0.3)}),
        "b": options_of({("spatial", r): (1 / r, r / 100 - 0.5) for r in (8, 16, 24)}),
        "c": options_of({("spatial", 8): (0.3, -0.4)}),
    }
    damage = {name: {one.what: one.costs["damage"] for one in found} for name, found in options.items()}
    plan = Draft({}, {"a": Way("spatial", (16,)), "b": Way("spatial", (8,))})

    def total(draft: Draft) -> float:
        return sum(found[draft.ways.get(name, DENSE)] for name, found in damage.items())

    found = questions.neighbours(plan, options, 200, np.random.default_rng(0))
    for one in found:
        changed = [name for name in options if one.ways.get(name, DENSE) != plan.ways.get(name, DENSE)]
        assert len(changed) == 1
        assert total(one) <= total(plan)
        assert one.widths == plan.widths
    assert [dict(one.ways) for one in found].count({"b": Way("spatial", (8,))}) == 1, "`a` dense"
    assert len(found) == len({str(sorted(one.ways.items())) for one in found}) == 6
    first = questions.neighbours(plan, options, 5, np.random.default_rng(0))
    assert all(one.ways.get("b") != Way("spatial", (24,)) for one in first), "two steps come after all single ones"


def test_exchanges_differ_in_two_layers_and_damage_no_more_in_all():
    options = {
        name: options_of({("spatial", r): (1 / r, r / 100 - 0.5) for r in (8, 16, 24)} | {("channel", 8): (1.0, -0.6)})
        for name in "abc"
    }
    plan = Draft({}, {"a": Way("spatial", (16,)), "b": Way("spatial", (8,))})
    found = questions.exchanges(plan, options, 200, np.random.default_rng(0))
    changes = [{name for name in "abc" if one.ways.get(name, DENSE) != plan.ways.get(name, DENSE)} for one in found]
    assert all(len(names) == 2 for names in changes)
    damage = {one.what: one.costs["damage"] for one in options["a"]}
    time = {one.what: one.costs["time"] for one in options["a"]}
    for one in found:
        steps = {name: (plan.ways.get(name, DENSE), one.ways.get(name, DENSE)) for name in "abc"}
        assert sum(damage[new] - damage[old] for old, new in steps.values()) <= 0
        assert any(time[new] < time[old] for old, new in steps.values())
    # a 16 → 8 damages 1/16 more, which b pays from 8 to 16; c dense → 24 damages 1/24, which a or b pays
    assert {"a": Way("spatial", (8,)), "b": Way("spatial", (16,))} in [dict(one.ways) for one in found]
    assert len(found) == len({str(sorted(one.ways.items())) for one in found})
    assert len(questions.exchanges(plan, options, 2, np.random.default_rng(0))) == 2


# --- rows ---------------------------------------------------------------------------------------------------


class Fake(Catalogue):
    """Networks without files."""

    def __init__(self) -> None:
        super().__init__({}, None, 0)

    def identity(self, name: str) -> list[object]:
        return [1]

    def subject(self, name: str, folder: Path, watch: Any, report: Any) -> Subject:
        return Subject(name, folder, folder / "no.onnx", None)  # type: ignore[arg-type]


def test_what_is_there_is_not_measured_again_and_each_row_is_written_at_once(tmp_path: Path, monkeypatch):
    results, asked = tmp_path / "rows.jsonl", []

    def ask(subject: Subject, answers: Answers, identity: list[object]) -> Found:
        asked.append(subject.name)
        if subject.name == "resnet50":
            raise KeyboardInterrupt
        return Found({"best": 1.01}, "as said")

    monkeypatch.setattr(choosing, "QUESTIONS", (choosing.Question("budget", ask),))

    def rows(threads: int = 1, *networks: str) -> list[ChoosingRow]:
        return list(choosing.run("budget", networks, Fake(), Answers(results, "here", threads, 0), None))  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        rows(1, "dec3", "resnet50")
    (kept,) = [ChoosingRow.model_validate_json(line) for line in results.read_text().splitlines()]
    assert (kept.network, kept.figures, kept.note) == ("dec3", {"best": 1.01}, "as said")
    assert [row.network for row in rows(1, "dec3", "resnet18")] == ["resnet18"]
    assert [row.network for row in rows(2, "dec3")] == ["dec3"], "another number of threads is another question"
    assert asked == ["dec3", "resnet50", "resnet18", "dec3"]
    table = markdown(Answers(results, "here", 1, 0).rows)
    assert table.splitlines()[2] == "| network | threads | seed | best | note |"
    assert table.count("| 1.01 | as said |") == 3


def test_what_cannot_be_asked_is_one_line(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["choosing", "run", "rivals", "dec3", "--results", str(tmp_path / "rows.jsonl")])
    with pytest.raises(SystemExit) as stop:
        choosing.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(
        "rankfold: unknown network 'dec3' for rivals; known are resnet20, resnet56"
    )
    with pytest.raises(InputError, match="resnet20: expected its published weights, found none; give --weights"):
        Catalogue({}, None, 0).identity("resnet20")
    (tmp_path / "resnet56-4b.th").touch()
    (tmp_path / "LICENSE").touch()
    assert weights_by_name([tmp_path]) == {"resnet56": tmp_path / "resnet56-4b.th"}
    with pytest.raises(InputError, match=r"no weights .*nowhere"):
        weights_by_name([tmp_path / "nowhere"])


# --- questions on a device whose time is known --------------------------------------------------------------


_times: dict[tuple[str, int], float] = {}


def by_macs(path: Path) -> float:
    """A MAC takes 20 ps, a node 0.1 µs."""
    key = path.name, path.stat().st_mtime_ns
    if key not in _times:
        model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
        nodes = sum(node.op_type != "ConstantOfShape" for node in model.graph.node)
        _times[key] = 2e-11 * (costs.count(model).macs or 0) + 1e-7 * nodes
    return _times[key]


@pytest.fixture
def small(tmp_path: Path, monkeypatch) -> Subject:
    """Two convolutions that may be factorised."""
    net = shapes.Shaped()
    x = "input"
    for number, (out, into) in enumerate(((16, 3), (32, 16))):
        x = net.relu(net.conv(x, f"conv{number}", (out, into, 3, 3)))
    source = tmp_path / "small.onnx"
    onnx.save(net.model(net.classes(x, 32, 10), 16), source)
    device = FakeDevice({}, time_of=by_macs)
    with device.launch() as process:
        facts = probe.facts(process)
    monkeypatch.setattr(questions, "PAIRS", 2)
    monkeypatch.setattr(questions, "NEIGHBOURS", 6)
    monkeypatch.setattr(questions, "BEST", 2)
    monkeypatch.setattr(questions, "SHARES", (0.8, 0.6))
    monkeypatch.setattr(questions, "DRAWN", 2)
    return Subject("small", tmp_path, source, stopwatch(device, facts, Options(), tmp_path / "table.sqlite"))


def test_questions_have_answers(small: Subject, monkeypatch):
    monkeypatch.setattr(subject, "SHARE", 0.6)
    monkeypatch.setattr(questions, "SHARE", 0.6)
    kept = questions.budget(small).figures
    assert kept["low"] <= kept["measured"] <= kept["high"]
    assert kept["measured"] == pytest.approx(kept["predicted"], rel=0.05)
    assert 0.5 < kept["measured"] <= 0.62
    filled = questions.fill(small).figures
    assert filled["models"] > 20
    assert filled["kinds"] == 3
    best = questions.beside(small)
    assert best.figures["neighbours"] == 6
    assert best.figures["low"] <= best.figures["best"] <= best.figures["high"]
    assert best.figures["best"] < 1.05, "where time is MACs, the solver finds the best"
    assert "→" in best.note
    layers = questions.in_place(small).figures
    assert layers["layers"] >= 1
    assert layers["there"] <= layers["largest"] < 0.02
    assert questions.predicted(small).figures["largest"] < 0.05


def test_what_cannot_be_had_is_an_answer(small: Subject, monkeypatch):
    monkeypatch.setattr(questions, "SHARE", 0.01)
    found = questions.budget(small)
    assert "expected at most 0.010 of the original's time, found" in found.note
    assert 0.05 < found.figures["fastest"] < 0.5
    monkeypatch.setattr(subject, "SHARE", 0.01)
    monkeypatch.setattr(subject, "WIDER", 0.02)
    answers = Answers(small.folder / "rows.jsonl", "here", 1, 0)
    asked = {question.what: question.ask for question in choosing.QUESTIONS}
    assert "at the fastest" in asked["in-place"](small, answers, []).note


# --- rivals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [0.01, 0.03])
def test_a_drop_is_reached_from_below_in_few_trials(wanted: float):
    known: dict[float, float] = {}
    while not any(wanted - 0.001 <= drop <= wanted for drop in known.values()):
        knob = next_knob(known, wanted, math.log(0.02), math.log(4), 5.0)
        known[knob] = round(0.02 * math.exp(0.8 * knob), 4)
        assert len(known) <= TRIALS
    assert next_knob({5.0: 0.0}, wanted, 0.0, 1.0, 5.0) == 5.0
    assert next_knob({1.0: 0.0, 2.0: 0.2, 3.0: 0.008}, 0.01, 0.0, 1.0, 5.0) == 4.0, "beyond the last that fits"


def test_the_network_that_loses_most_within_the_drop_is_kept(small: Subject, monkeypatch):
    judged = []

    def drop(self: Rivals, decisions: Mapping[str, LayerDecision], aware: bool) -> float:
        judged.append(len(decisions))
        return 0.004 * len(decisions)

    monkeypatch.setattr(Rivals, "drop", drop)
    monkeypatch.setattr(Rivals, "__post_init__", lambda self: None)
    layer = LayerDecision(form="spatial", ranks=[4], reason="")

    def decided(knob: float) -> dict[str, LayerDecision]:
        return {f"layer{index}": layer for index in range(max(int(knob), 0))}

    rivals = Rivals(small, Answers(small.folder / "rows.jsonl", "here", 1, 0), [])
    _, found = rivals.placed(Method("ours", decided, 0.0, 2.0, 20.0), 0.01)
    assert (len(found.decisions), found.drop) == (2, 0.008)
    assert len(judged) <= TRIALS
    _, none = rivals.placed(Method("ours", lambda knob: decided(9), 0.0, 2.0, 20.0), 0.01)
    assert none == Placed("ours", {}, True, 0.0)


def test_what_fits_a_smaller_drop_is_known_for_a_larger_one(small: Subject, monkeypatch):
    """A method that never comes near three points again falls back on the network that loses one."""
    monkeypatch.setattr(Rivals, "drop", lambda self, decisions, aware: 0.0095 if len(decisions) == 1 else 0.5)
    monkeypatch.setattr(Rivals, "__post_init__", lambda self: None)
    layer = LayerDecision(form="spatial", ranks=[4], reason="")
    sizes = iter([1, *[2] * TRIALS])
    method = Method("ours", lambda knob: dict.fromkeys(["conv0", "conv1"][: next(sizes)], layer), 0.0, 2.0, 20.0)
    rivals = Rivals(small, Answers(small.folder / "rows.jsonl", "here", 1, 0), [])
    one, three = (rivals.known_or_placed(method, wanted) for wanted in (0.01, 0.03))
    assert one == three == Placed("ours", {"conv0": layer}, True, 0.0095)


def test_macs_and_energy_choose_without_the_device(small: Subject, monkeypatch):
    monkeypatch.setattr(Rivals, "__post_init__", lambda self: None)
    rivals = Rivals(small, Answers(small.folder / "rows.jsonl", "here", 1, 0), [])
    ours, macs = (rivals.methods[name].decided(math.log(0.3)) for name in ("ours", "macs"))
    assert any(rank % small.tile for layer in macs.values() for rank in layer.ranks), "ranks off the tile too"
    assert not any(rank % small.tile for layer in ours.values() for rank in layer.ranks)
    assert rivals.built(macs, True).macs <= rivals.built(ours, True).macs
    energy = rivals.methods["channel, one energy"].decided(math.log(0.3))
    assert {layer.form for layer in energy.values()} == {"channel"}
    assert rivals.built(energy, False).macs < 1
