"""Side by side with peers: the rules, and all stages on a tiny network, to be gone on with at any point."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import Queue

import numpy as np
import pytest
import torch
from torch import nn

from rankfold.benchmarks import oneshot
from rankfold.benchmarks.answers import Found
from rankfold.benchmarks.evidence import written
from rankfold.benchmarks.peers import campaign, finalists, making, own, shown, timing
from rankfold.benchmarks.peers.campaign import Campaign
from rankfold.benchmarks.peers.finalists import BANDS, DROP, NEAR, REACH, best, between, chosen, going_on, holding
from rankfold.benchmarks.peers.mobilenet import WIDTHS, mobilenetv2
from rankfold.benchmarks.peers.own import DENSE, INT8, NARROW, RANKFOLD
from rankfold.benchmarks.peers.points import Point
from rankfold.benchmarks.peers.shown import draw, markdown
from rankfold.benchmarks.peers.subjects import SUBJECTS, Dec3, Places, ResNet20
from rankfold.benchmarks.peers.tools import FileTool, ModuleTool, Setting
from rankfold.errors import CheckFailed
from rankfold.export.compress import Job
from rankfold.export.wish import Wish
from rankfold.records import Comparison, Facts, PeerRow, PeerTime, Score
from rankfold.runtime.turns import Options

from ..conftest import SOAK


def row(tool: str = "a tool", accuracy: float | None = 0.9, **changed) -> PeerRow:
    """As if it had been made."""
    made = PeerRow(
        network="tiny",
        tool=tool,
        setting="one",
        config_hash="0",
        quick=False,
        epochs=0,
        weight=None,
        validation_accuracy=accuracy,
        validation_n=100,
        macs=1000,
        parameters=100,
        size_bytes=1000,
        compress_s=1,
    )
    return made.model_copy(update=changed)


def took(speedup: float) -> PeerTime:
    """Launch pairs without spread."""
    same = {"low": speedup, "high": speedup, "bare": speedup, "bare_low": speedup, "bare_high": speedup}
    p50 = {"p50_s": 1 / speedup, "p50_low_s": 1 / speedup, "p50_high_s": 1 / speedup}
    return PeerTime(speedup=speedup, **same, **p50, peak_rss_bytes=10**6, pairs=2, threads=1, machine="here")


# --- rules --------------------------------------------------------------------------------------------------


def test_a_finalist_is_the_most_accurate_in_its_band_of_time():
    rows = {
        "fast": row(accuracy=0.5, roughly=0.4),
        "as good but smaller": row(accuracy=0.504, roughly=0.5, macs=900),
        "worse": row(accuracy=0.3, roughly=0.49),
        "slower": row(accuracy=0.8, roughly=0.8),
        "between": row(accuracy=0.7, roughly=0.6),
        "slower yet": row(accuracy=0.4, roughly=0.92),
        "slow": row(accuracy=0.9, roughly=0.97),
        "failed": row(accuracy=None, failed="no"),
    }
    assert finalists.finalists(rows, BANDS) == ["fast", "between", "slower"]
    assert finalists.finalists({"slow": rows["slow"], "failed": rows["failed"]}, BANDS) == ["slow"]
    assert finalists.finalists({"failed": rows["failed"]}, BANDS) == []


def test_the_fastest_that_is_near_goes_on_else_the_most_accurate():
    rows = {
        "fast": row(accuracy=0.9 - 1.1 * NEAR, roughly=0.3),
        "near": row(accuracy=0.9 - 0.9 * NEAR, roughly=0.5),
        "nearer": row(accuracy=0.9, roughly=0.6),
    }
    assert best(rows, 0.9) == "near"
    assert best(rows, 0.9, 0.5 * NEAR) == "nearer"
    assert best(rows, 0.95) == "nearer"
    assert best({}, 0.9) is None


def test_those_within_reach_learn_longer_each_as_it_learned_better():
    def learned(setting: str, accuracy: float | None, roughly: float) -> PeerRow:
        return row(accuracy=accuracy, roughly=roughly).model_copy(update={"setting": setting})

    rows = {
        "taught": learned("a", 0.9, 0.5),
        "by labels": learned("a", 0.91, 0.5),
        "within reach": learned("b", 0.9 - 0.9 * REACH, 0.3),
        "out of reach": learned("c", 0.9 - 1.1 * REACH, 0.2),
        "failed": learned("d", None, 0.1),
    }
    assert going_on(rows, 0.9) == ["by labels", "within reach"]
    assert going_on({"out of reach": rows["out of reach"]}, 0.9) == ["out of reach"]
    assert going_on({}, 0.9) == []


def test_what_holds_is_as_fast_as_the_fastest_that_loses_little():
    rows = [row(accuracy=0.9, roughly=0.8), row(accuracy=0.9 - 0.9 * DROP, roughly=0.7), row(accuracy=0.8, roughly=0.5)]
    assert holding([*rows, row(accuracy=None, failed="no"), row(accuracy=0.9, precision="int8")], 0.9) == 0.7
    assert holding(rows[2:], 0.9) == 1.0


def test_those_between_what_holds_and_what_a_tool_lost_more_with_learn_as_well():
    grid = {
        "held": row(accuracy=0.88, roughly=0.8, macs=800),
        "slower": row(accuracy=0.88, roughly=0.85, macs=850),
        "as wide as what held": row(accuracy=0.87, roughly=0.79, macs=800),
        "second": row(accuracy=0.7, roughly=0.72, macs=720),
        "third": row(accuracy=0.6, roughly=0.7, macs=700),
        "first": row(accuracy=0.8, roughly=0.75, macs=750),
        "as wide as the first": row(accuracy=0.79, roughly=0.75, macs=750),
        "lost more": row(accuracy=0.85, roughly=0.65, macs=650),
        "faster than that": row(accuracy=0.85, roughly=0.64, macs=640),
        "failed": row(accuracy=None, failed="no"),
    }
    assert between(grid, [grid["held"], grid["lost more"]], 0.8) == ["first", "second"]
    assert between(grid, [grid["lost more"]], 0.7) == []
    assert between(grid, [grid["held"]], 0.65) == ["faster than that"]
    assert between({}, [], 1.0) == []


def test_the_fastest_that_loses_little_is_chosen_in_each_class():
    dense = row(DENSE, 0.9, time=took(1))
    lost = 0.9 - 1.01 * DROP
    ours, peer = row(RANKFOLD, 0.9 - 0.99 * DROP, time=took(1.5)), row("peer", 0.9, time=took(1.4))
    rows = [
        dense,
        ours,
        row(RANKFOLD, 0.9, time=took(1.2)),
        row(RANKFOLD, lost, time=took(3)),
        peer,
        row("peer", lost, time=took(9)),
        row("peer", 0.95),
        small := row(INT8, 0.9, precision="int8", time=took(2)),
    ]
    wanted = {(RANKFOLD, "fp32"): ours, ("peer", "fp32"): peer, (RANKFOLD, "int8"): None, ("peer", "int8"): small}
    assert chosen(rows, dense) == wanted


# --- a tiny network, all the way ----------------------------------------------------------------------------


class Tiny(Dec3):
    """Dec3 with few channels on small images."""

    name = "tiny"
    narrower = ((16, 16, 16), (8, 8, 16))
    is_taught = False

    def _recipe(self, widths=None, changes=()):
        recipe = super()._recipe(widths or (16, 16, 32), changes)
        short = {"epochs": 1, "batch_size": 16}
        return recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update=short)})


class LongerTiny(Tiny):
    """Long enough for filters to die."""

    def _recipe(self, widths=None, changes=()):
        recipe = super()._recipe(widths, changes)
        return recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"epochs": 6})})


class ByMacs(own.Rankfold):
    """Ours, with nothing timed."""

    def settings(self, network, quick):
        return [Setting(self.name, "half of the MACs", {"share": 0.5}, is_alone=True)]

    def _compress(self, source, target, setting):
        job = Job(Wish(("channel",), macs=setting.arguments["share"]), data=self.subject.calibration(), most=16)
        job.into(target.parent, source, target.name)

    def _quantize(self, source, target, setting):
        own.OrtInt8(self.subject).apply_file(source, target, setting, self.subject.data)


class Broken:
    """Whatever a library raises."""

    name = "broken"
    lines = 1
    example = "nowhere"
    missing: str | None = None

    def settings(self, network: str, quick: bool) -> Sequence[Setting]:
        return [Setting(self.name, "any")]

    def apply(self, model: nn.Module, example: torch.Tensor, setting: Setting, data) -> nn.Module:
        raise KeyError("out of a library")


class Absent(Broken):
    """A library that is not installed."""

    name = "absent"
    missing = "absent is not installed"


@pytest.fixture
def places(tmp_path: Path, monkeypatch) -> Places:
    """Tiny data, tools and lengths; workers are this process, times are made up, and outside of soak all networks."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (100, 12, 12, 3), np.uint8), random.integers(0, 4, 100)
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    monkeypatch.setitem(SUBJECTS, "tiny", Tiny)
    monkeypatch.setattr(oneshot, "CALIBRATION", 16)
    monkeypatch.setattr(own, "CALIBRATED", (16,))
    monkeypatch.setitem(own.FORMS, "tiny", ("channel",))
    for module in (making, shown):
        monkeypatch.setattr(module, "tools", lambda: [Broken(), Absent()])
    monkeypatch.setattr(
        making,
        "own",
        lambda subject, *_: [own.Dense(subject), ByMacs(subject), own.Narrow(subject), own.OrtInt8(subject)],
    )
    monkeypatch.setattr(campaign, "EPOCHS", (0.5, 1.0))
    monkeypatch.setattr(campaign, "side_by_side", one_after_the_other)
    monkeypatch.setattr(campaign, "stopwatch_here", lambda: None)
    monkeypatch.setattr(campaign, "roughly", lambda watch, dense, files, report: dict.fromkeys(files, 0.5))
    monkeypatch.setattr(campaign, "in_pairs", made_up)
    monkeypatch.setattr(campaign, "toolchain", lambda *_: Found({"fold s": 2.0, "onnxsim s": 2.0}))
    monkeypatch.setattr(campaign, "duel", lambda *_: (compared(1.1), compared(1.2)))
    monkeypatch.setattr(finalists, "DROP", 1.0)
    if not SOAK:
        monkeypatch.setattr(campaign, "in_worker", pretended)
        monkeypatch.setattr(campaign, "scored", lambda file, *_: a_score(file))
        monkeypatch.setattr(Tiny, "source", lambda self: self.folder)
    return Places(tmp_path, tmp_path / "data.npz", tmp_path / "data.npz", tmp_path / "work")


def pretended(places: Places, name: str, point: Point, told) -> PeerRow:
    """The row of a point, and a file."""
    subject, tool = SUBJECTS[name](places), point.setting.tool
    about = {"tool": tool, "setting": point.setting.name, "config_hash": point.config_hash(subject), "validation_n": 20}
    learned = {"epochs": point.epochs, "weight": point.weight}
    if tool == "broken":
        return row(accuracy=None, failed="KeyError: 'out of a library'", **about, **learned)
    point.folder(subject).mkdir(parents=True, exist_ok=True)
    point.file(subject).write_bytes(b"a network")
    return row(**about, **learned, precision="int8" if point.int8 or tool == INT8 else "fp32")


def a_score(file: Path) -> Score:
    assert file.exists()
    told = {"name": "", "data": "", "split": "test", "metric": "top-1", "n": 20, "seed": 0}
    return Score(model_sha256="0" * 64, value=0.9, low=0.8, high=0.95, **told)


def one_after_the_other(work, todo, folders, count, until) -> Iterator[Future[PeerRow]]:
    for item in todo:
        done: Future[PeerRow] = Future()
        done.set_result(work(item, Queue()))
        yield done


def made_up(folder, dense, files, options) -> dict[str, PeerTime]:
    return {name: took(1 + number) for number, name in enumerate(["dense", *files])}


def compared(ratio: float) -> Comparison:
    return Comparison(baseline="peer", variant="rankfold", ratio=ratio, low=ratio, high=ratio, pairs=2)


def test_all_stages_and_none_is_done_twice(places, tmp_path, capsys, monkeypatch):
    results = tmp_path / "rows.jsonl"
    Campaign(Tiny(places), results).run()
    rows = Campaign(Tiny(places), results).rows
    made = {(r.tool, r.setting, r.epochs, r.weight, r.precision) for r in rows.values() if not r.failed}
    bits = next(r.setting for r in rows.values() if r.tool == INT8)
    half, narrow = "half of the MACs", "16-16-16"
    assert {
        (DENSE, "as it is", 0, None, "fp32"),
        (RANKFOLD, half, 0, None, "fp32"),
        (NARROW, narrow, 0, None, "fp32"),
        (NARROW, "8-8-16", 0, None, "fp32"),
        (INT8, bits, 0, None, "int8"),
        (RANKFOLD, half, 0.5, 0.9, "fp32"),
        (RANKFOLD, half, 0.5, 0, "fp32"),
    } <= made
    assert {(tool, kind) for tool, _, epochs, _, kind in made if epochs == 1} >= {(RANKFOLD, "fp32"), (NARROW, "fp32")}
    assert {(tool, kind) for tool, *_, kind in made} >= {(RANKFOLD, "int8"), (NARROW, "int8")}
    (broken,) = (r for r in rows.values() if r.failed)
    assert (broken.tool, broken.failed) == ("broken", "KeyError: 'out of a library'")
    assert all(r.validation_n == 20 and r.size_bytes for r in rows.values() if not r.failed)
    assert len({(r.macs, r.parameters) for r in rows.values() if r.tool in (DENSE, INT8)}) == 1
    assert capsys.readouterr().out.count("\n") == len(rows)

    begun = {key: one for key, one in rows.items() if one.epochs == 1}  # what has its file is scored anew, not made
    results.write_text("".join(f"{one.model_dump_json()}\n" for key, one in rows.items() if key not in begun))
    monkeypatch.setattr(making, "train", lambda *_, **__: pytest.fail("it was trained"))
    again = Campaign(Tiny(places), results)
    again.run()
    assert again.rows == rows
    assert capsys.readouterr().out.count("\n") == len(begun)

    known = set(again.points)
    again.measure(Options())
    assert set(again.points) == known
    timed = [one for one in again.rows.values() if one.time is not None]
    ours = [one.time for one in timed if one.tool == RANKFOLD and one.precision == "fp32"]
    assert len(ours) == 4
    assert {one.speedup for one in ours if one is not None} == {2.0}
    assert not any(one.failed for one in timed)
    tested = [(one.tool, one.precision) for one in timed if one.test_accuracy is not None]
    assert tested[0] == (DENSE, "fp32")
    assert sorted((tool == RANKFOLD, kind) for tool, kind in tested[1:]) == [
        *((side, kind) for side in (False, True) for kind in ("fp32", "int8"))
    ]
    told = markdown(results)
    assert told.count("Timed on here, threads: 1.") == 1
    assert "- fp32: the fastest of rankfold is rankfold, half of the MACs" in told
    assert re.search(r"\| rankfold \| half of the MACs, [^|]+ \| 2\.00× \(2\.00 to 2\.00\) \| 90\.00 % \|", told)
    assert told.count("rankfold is 1.100× (1.100 to 1.100) as fast as the peer; by a bare loop 1.200×") == 2
    assert "seconds: fold 2.0 (onnxsim 2.0)." in told
    assert "- absent: absent is not installed" in told
    assert "no network of broken, any: KeyError" in told
    draw(results)
    assert results.with_suffix(".svg").stat().st_size > 10_000

    Campaign(Tiny(places), results, retry=True).run()
    assert capsys.readouterr().out.count("\n") == 1  # the one that failed

    point = again.points[next(key for key, one in again.rows.items() if one.tool == NARROW and not one.epochs)]
    point.file(again.subject).unlink()
    with pytest.raises(CheckFailed, match="1 points have not been made"):
        Campaign(Tiny(places), results).measure(Options())


def test_what_measures_is_made_alone_and_first(places, tmp_path, monkeypatch):
    subject = Tiny(places)
    monkeypatch.setattr(Tiny, "identity", "tiny")
    points = [Point(Setting("a tool", name, is_alone=name in "bd")) for name in "abcd"]
    points += [Point(points[1].setting, 1.0, 0.9), Point(points[0].setting, int8=points[1].setting)]
    told: list[list[str]] = []

    def together(work, todo, *_):
        told.append(
            [f"{point.setting.name}{point.epochs:g}{'' if point.int8 is None else ' in int8'}" for point in todo]
        )
        return iter([])

    monkeypatch.setattr(campaign, "side_by_side", together)
    with pytest.raises(CheckFailed, match="1 points are left"):
        Campaign(subject, tmp_path / "rows.jsonl").make(points)
    assert told == [["b0"]]
    monkeypatch.setattr(Campaign, "_make_together", lambda self, todo: together(None, todo))
    Campaign(subject, tmp_path / "rows.jsonl").make(points)
    assert told[1:] == [["b0"], ["d0"], ["a0 in int8"], ["a0", "c0", "b1"]]


def test_ours_is_trained_small_and_learns_on(places, monkeypatch):
    monkeypatch.setattr(Tiny, "source", Dec3.source)
    monkeypatch.setattr(making, "own", own.own)
    monkeypatch.setattr(own, "here", lambda: Facts.model_construct(isa=[], tile=4))
    subject = LongerTiny(places)
    shrinking = {"group": 1, "relative": "true", "every": 1, "tile": 4, "target_macs": 0.6}
    setting = Setting(
        RANKFOLD, "trained", {"changes": [f"regularizer.{key}={value}" for key, value in shrinking.items()]}
    )
    dense, small, learned = (
        making.row_of(point, subject, lambda *_: None)
        for point in (Point(Setting(DENSE, "as it is")), Point(setting), Point(setting, 1.0, 0.9))
    )
    assert dense.failed is small.failed is learned.failed is None
    assert (small.macs or 1) <= 0.6 * (dense.macs or 0)
    assert small.train_s == 0 < learned.train_s
    assert learned.macs == small.macs


def test_a_row_takes_the_place_of_an_older_one_of_its_name(tmp_path):
    one = Campaign(SUBJECTS["mobilenetv2"](Places(tmp_path, tmp_path, tmp_path, tmp_path)), tmp_path / "rows.jsonl")
    for row_hash in ("old", "new"):
        one.add(row(config_hash=row_hash))
    one.add(row(config_hash="other", weight=0.9, epochs=1))
    assert list(one.rows) == ["new", "other"]


def test_own_tools_are_tools_with_a_grid_of_points_that_differ(tmp_path):
    for name, kind in SUBJECTS.items():
        subject = kind(Places(tmp_path, tmp_path, tmp_path, tmp_path))
        for tool in own.own(subject):
            assert isinstance(tool, ModuleTool | FileTool)
            if tool.name != INT8:  # which asks the processor
                names = [setting.name for setting in tool.settings(name, quick=False)]
                assert len(set(names)) == len(names) >= 1
                assert len(tool.settings(name, quick=True)) <= len(names)


def test_choices_are_made_on_images_that_the_published_weights_have_not_seen(tmp_path):
    images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 10
    test = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1) * np.ones((1, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "c.npz", x_train=images, y_train=labels, x_test=test, y_test=labels[:10])
    data = ResNet20(Places(tmp_path, tmp_path / "c.npz", tmp_path, tmp_path)).data
    assert [int(one[0, 0, 0]) for one in data.validation.images] == [0, 1, 2, 3, 4]
    assert [int(one[0, 0, 0]) for one in data.test.images] == [5, 6, 7, 8, 9]
    assert len(data.train) == 18


def test_mobilenet_has_the_published_shape():
    """Sandler et al.: 2.2 million parameters with ten classes, 17 depthwise layers; the same at every call."""
    model = mobilenetv2()
    depthwise = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(depthwise) == 17
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(2.24e6, rel=0.01)
    images = torch.zeros(2, 3, 32, 32)
    assert torch.equal(model(images), mobilenetv2(widths=WIDTHS)(images))


@pytest.mark.skipif(not SOAK, reason="launch pairs: in soak")
def test_times_come_from_launch_pairs_and_are_kept(tmp_path, monkeypatch):
    (_, dense), (_, more) = written(tmp_path, 64)
    options = Options(pairs=2, block_runs=3)
    found = timing.in_pairs(tmp_path, dense, {"more": more}, options)
    assert found["dense"].speedup == found["dense"].bare == 1
    assert 0.5 < found["more"].speedup < 1.2
    assert 0.5 < found["more"].bare < 1.2
    assert 0 < found["more"].p50_low_s <= found["more"].p50_s <= found["more"].p50_high_s
    assert (found["more"].peak_rss_bytes or 0) > 1e6
    monkeypatch.setattr(timing, "measure", lambda *_, **__: pytest.fail("it was measured again"))
    assert timing.in_pairs(tmp_path, dense, {"more": more}, options) == found
