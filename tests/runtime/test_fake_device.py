"""The whole harness against a device whose truth is known: what it reports when boards misbehave."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from rankfold.devices.card import find
from rankfold.errors import DeviceError, Inconclusive, InputError, Unreachable
from rankfold.records import Bench, Done
from rankfold.runtime import diagnose, serving
from rankfold.runtime.kept import Kept
from rankfold.runtime.load import missed, slowdown
from rankfold.runtime.measure import Options, Progress, measure, under_load

from .conftest import save_convolution
from .fake_device import FakeDevice

RATIO = 2.0
CLOSE = 0.003  # noise of 0.3 % on single runs, 8 pairs


@pytest.fixture
def models(tmp_path: Path) -> list[tuple[str, Path]]:
    return [(name, save_convolution(tmp_path / f"{name}.onnx")) for name in ("dense", "small")]


def bench(models: list[tuple[str, Path]], device: FakeDevice, **options: Any) -> Bench:
    asked = Options(**options)
    found = measure(models, device, find("host"), asked, clock=device.clock)
    return under_load(found, models, device, asked, clock=device.clock)


def device(**changes: Any) -> FakeDevice:
    return FakeDevice({"dense": 2e-3, "small": 2e-3 / RATIO}, **changes)


def whats(found: Bench) -> list[str]:
    return [caution.what for caution in found.cautions]


def truth_in(found: Bench) -> bool:
    (comparison,) = found.comparisons
    return comparison.low <= RATIO <= comparison.high


def test_a_calm_device_gives_its_ratio_and_no_caution(models):
    calm = device()
    found = bench(models, calm)
    assert found.comparisons[0].ratio == pytest.approx(RATIO, rel=CLOSE)
    assert truth_in(found)
    assert whats(found) == []
    assert calm.alive == 0
    starts = [block.start_s for block in found.pairs[0].blocks]
    assert starts == sorted(starts)
    assert starts[0] > 2 * 0.4  # both processes started on the device's own clock


def test_a_device_that_heats_up_and_throttles_says_so_and_keeps_the_ratio(models):
    """Half speed after six seconds; the firmware's flags change."""
    hot = device(
        factor=lambda now_s: 1.0 if now_s < 6 else 2.0,
        weather=lambda now_s: {"throttled": "firmware 0x0" if now_s < 6 else "firmware 0x4"},
    )
    found = bench(models, hot)
    assert found.comparisons[0].ratio == pytest.approx(RATIO, rel=CLOSE)
    assert any("the processor was throttled" in what for what in whats(found))
    assert any("launches fall into modes" in what for what in whats(found))


@pytest.mark.parametrize("slope", [0.02, -0.02])
def test_a_drift_of_two_per_cent_a_second_leaves_the_ratio(models, slope):
    found = bench(models, device(factor=lambda now_s: math.exp(slope * now_s)), pairs=16)
    assert found.comparisons[0].ratio == pytest.approx(RATIO, rel=CLOSE)


def test_a_pause_costs_one_block_and_not_the_ratio(models):
    """Three seconds in which nothing runs, as when a machine is suspended."""
    asleep = {"s": 3.0}

    def run_factor(stem: str, run: int) -> float:
        if stem == "small" and run > 310 and asleep["s"]:  # long after its warm-up
            pause, asleep["s"] = asleep["s"], 0.0
            return pause / 1e-3
        return 1.0

    found = bench(models, device(run_factor=run_factor))
    assert max(s for pair in found.pairs for block in pair.blocks for s in block.samples_s) > 1
    assert found.comparisons[0].ratio == pytest.approx(RATIO, rel=CLOSE)
    assert truth_in(found)


@pytest.mark.parametrize("number", [4, 9])
def test_a_launch_that_dies_is_named_and_nothing_is_left(models, number):
    dying = device(dies_at=number)
    with pytest.raises(DeviceError, match=r"^(dense|small): the board process was killed by SIGKILL"):
        bench(models, dying)
    assert dying.alive == 0


def test_a_pair_whose_connection_was_lost_is_taken_again_and_no_other(models, monkeypatch):
    """1 probes, 2 and 3 try the models; 4 and 8 lose it, each in a pair."""
    monkeypatch.setattr(serving, "WAITS_S", (0.0, 0.0))
    told: list[str] = []
    losing = device(lost_at=(4, 8))
    found = measure(
        models, losing, find("host"), Options(pairs=4), lambda now: told.append(now.what), clock=losing.clock
    )
    assert [pair.seed for pair in found.pairs] == [0, 1, 2, 3]
    assert truth_in(found)
    assert losing.launches == 1 + 2 + 2 * (4 + 2) + 1
    assert sum(what.endswith(": no connection to the board") for what in told) == 2
    assert losing.alive == 0


def test_a_board_that_does_not_come_back_is_given_up(models, monkeypatch):
    monkeypatch.setattr(serving, "WAITS_S", (0.0, 0.0))
    losing = device(lost_at=tuple(range(4, 99)))
    with pytest.raises(Unreachable, match="no connection to the board"):
        bench(models, losing)
    assert losing.launches == 1 + 2 + 2 * 3


@pytest.mark.parametrize("cut_short", [False, True])
def test_whatever_ends_a_bench_finished_pairs_are_kept_and_it_goes_on_after_them(models, tmp_path, cut_short):
    """1 probes, 2 and 3 try the models, 4 to 7 are two pairs; 8 is killed in the third."""
    options, path = Options(pairs=4), tmp_path / "bench.json.part"
    dying = device(dies_at=8)
    with pytest.raises(DeviceError, match="killed by SIGKILL"):
        measure(models, dying, find("host"), options, clock=dying.clock, kept=Kept(path))
    before = [Done.model_validate_json(line).pair for line in path.read_text().splitlines()[1:]]
    assert [pair.seed for pair in before] == [0, 1]
    if cut_short:  # by a power cut, say: the second pair's line is not whole
        path.write_bytes(path.read_bytes()[:-100])
    again = device()
    kept = Kept(path, resume=True)
    found = measure(models, again, find("host"), options, clock=again.clock, kept=kept)
    assert [pair.seed for pair in found.pairs] == [0, 1, 2, 3]
    assert found.pairs[: 2 - cut_short] == before[: 2 - cut_short]
    assert [launch.pair for launch in found.variants[1].launches] == [0, 1, 2, 3]
    assert again.launches == 1 + 2 + 2 * (2 + cut_short) + 1
    assert [Done.model_validate_json(line).pair for line in path.read_text().splitlines()[1:]] == found.pairs
    kept.forget()
    assert not path.exists()


def test_a_bench_goes_on_only_with_what_was_begun_alike(models, tmp_path):
    path = tmp_path / "bench.json.part"
    dying = device(dies_at=8)
    with pytest.raises(DeviceError, match="killed by SIGKILL"):
        measure(models, dying, find("host"), Options(pairs=4), clock=dying.clock, kept=Kept(path))
    content = path.read_bytes()
    for options, facts in ((Options(pairs=4, seed=1), {}), (Options(pairs=4), {"onnxruntime_version": "1.31.0"})):
        with pytest.raises(InputError, match=r"bench\.json\.part has no pairs of these models, options and device"):
            measure(models, device(facts=facts), find("host"), options, kept=Kept(path, resume=True))
    assert path.read_bytes() == content
    for nothing in (b"", b"<html>\n", b"\xff\n", content[:40]):
        path.write_bytes(nothing)
        with pytest.raises(InputError, match="has no pairs of these models"):
            measure(models, device(), find("host"), Options(pairs=4), kept=Kept(path, resume=True))


def test_a_run_that_hangs_ends_after_its_time(models):
    with pytest.raises(DeviceError, match=r"no answer from the board within 6\d\.\d+ s"):
        bench(models, device(factor=lambda now_s: 1.0 if now_s < 4 else 1e4))


# --- the number of pairs from a wanted half-width ------------------------------------------------------------


def uneven(spread: float) -> Any:
    """Whole processes differ by a factor, as they do on shared machines."""
    return lambda number: 1 + spread * ((number * 0.618) % 1)


def test_a_half_width_chooses_the_count_from_a_pilot_and_is_reached(models):
    found = bench(models, device(launch_factor=uneven(0.05)), half_width=0.01)
    assert found.pilot is not None
    assert found.pilot.pairs == 8
    assert found.pilot.half_widths["small"] > 0.01
    (comparison,) = found.comparisons
    assert comparison.pairs == len(found.pairs) > 8
    assert math.log(comparison.high / comparison.low) / 2 < 0.012
    assert truth_in(found)


def test_a_half_width_that_is_had_anyway_takes_the_usual_count(models):
    found = bench(models, device(), half_width=0.05)
    assert found.comparisons[0].pairs == 8


def test_a_half_width_that_cannot_be_had_says_what_can(models):
    with pytest.raises(
        Inconclusive, match=r"0\.01% would take [\d,]+ pairs a model here.*ask for 0\.\d\d% \(\d+ min\)"
    ):
        bench(models, device(launch_factor=uneven(0.05)), half_width=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"half_width": 0.01, "pairs": 9}, "the number of pairs or the half-width that decides it, not both"),
        ({"half_width": 2.0}, "a half-width of 2 is not between 0 and 1; write 0.005 for 0.5 %"),
    ],
)
def test_half_widths_that_make_no_sense_are_refused(models, options, says):
    with pytest.raises(InputError, match=says):
        bench(models, device(), **options)


def test_a_half_width_of_one_model_is_refused(models):
    with pytest.raises(InputError, match="a half-width is that of a ratio; name two models or more"):
        bench(models[:1], device(), half_width=0.01)


# --- under load ----------------------------------------------------------------------------------------------


def test_frames_that_come_too_fast_are_missed(models):
    """At 750 Hz the dense model, 2 ms a run, answers every second frame, and late."""
    dense, small = bench(models, device(), pairs=2, rate_hz=750.0).paced
    assert missed(small) == (0, 7500)
    late, frames = missed(dense)
    assert frames == 7500
    assert dense.dropped == pytest.approx(3750, abs=40)
    assert late == frames
    assert all(response >= sample - 1e-9 for response, sample in zip(small.responses_s, small.samples_s, strict=True))


def test_a_board_that_heats_up_without_a_pause_is_seen(models):
    """Half speed after 8 s; the temperatures are there to see it by."""
    hot = device(
        factor=lambda now_s: 1.0 if now_s < 15 else 2.0,
        weather=lambda now_s: {"temperatures_c": {"cpu": 40 + now_s}},
    )
    said: list[str] = []
    options = Options(pairs=2, sustain_s=20.0)
    measured = measure(models, hot, find("host"), options, clock=hot.clock)

    def tell(progress: Progress) -> None:
        said.append(f"{progress.what} {progress.left_s or 0:.0f}")

    found = under_load(measured, models, hot, options, tell, hot.clock)
    assert found.pairs == measured.pairs
    first = found.sustained[0]
    assert slowdown(first) == pytest.approx(2, rel=0.01)
    heat = [moment.weather.temperatures_c["cpu"] for moment in first.moments]
    assert heat == sorted(heat)
    assert 12 <= len(first.moments) <= 21
    assert slowdown(found.sustained[1]) == pytest.approx(1, rel=0.01)  # hot from the beginning
    assert any(re.match(r"dense without a pause 1\d", line) for line in said)


def test_a_load_that_fails_leaves_the_pairs(models):
    """The second process under load dies: what was measured before is the caller's already."""
    dying = device(dies_at=22)
    options = Options(sustain_s=20.0)
    measured = measure(models, dying, find("host"), options, clock=dying.clock)
    assert len(measured.pairs) == 8
    assert dying.launches < 22
    with pytest.raises(DeviceError, match=r"^small: the board process was killed"):
        under_load(measured, models, dying, options, clock=dying.clock)


def test_a_short_run_without_a_pause_says_nothing(models):
    short = bench(models, device(), pairs=2, sustain_s=2.0).sustained[0]
    assert slowdown(short) is None


@pytest.mark.parametrize("options", [{"rate_hz": 0.0}, {"sustain_s": -1.0}, {"rate_hz": math.inf}])
def test_loads_that_make_no_sense_are_refused(models, options):
    with pytest.raises(InputError, match=r"makes no sense; give 0\.1 to 100,000"):
        bench(models, device(), **options)


# --- every caution, from the device to the line --------------------------------------------------------------


def core(governor: str | None, frequency_hz: int | None) -> dict[str, Any]:
    return {"cores": [{"core": 3, "governor": governor, "frequency_hz": frequency_hz}]}


def flickering(now_s: float) -> float:
    """Slow for 30 ms in every 100."""
    return 1.57 if now_s % 0.1 < 0.03 else 1.0


CASES: dict[str, tuple[FakeDevice, dict[str, Any], str]] = {
    "_few_pairs": (device(), {"pairs": 4}, "4 pairs, an interval wants 8"),
    "_few_runs": (
        FakeDevice({"dense": 2.0, "small": 1.0}),
        {},
        "6 runs in a launch, of ",
    ),
    "_wide_interval": (device(launch_factor=uneven(0.3)), {}, "the interval is ±"),
    "_two_ratios": (
        device(run_factor=lambda stem, run: 4 / 3 if stem == "small" and run % 5 else 1.0),
        {},
        "by their undisturbed runs",
    ),
    "_modes": (device(launch_factor=lambda number: 1.5 if number % 3 == 0 else 1.0), {}, "launches fall into modes"),
    "_bursts": (device(factor=flickering), {}, "slower than their launch's best"),
    "_cut": (
        device(run_factor=lambda stem, run: 4.0 if run % 5 == 0 else 1.0),
        {},
        "20% of the runs take over 2 times their block's median",
    ),
    "_steal": (device(block={"steal_s": 0.01}), {}, "the hypervisor took"),
    "_switches": (device(block={"involuntary_switches": 40}), {}, "timed runs were interrupted"),
    "_throttling": (device(weather=lambda _: {"throttled": "firmware 0x50005"}), {}, "the processor was throttled"),
    "_hot": (
        device(factor=lambda now_s: 1.0 if now_s < 40 else 1.3),
        {"sustain_s": 30},
        "s without a pause a run takes 30% longer",
    ),
    "_frequency": (
        device(weather=lambda now_s: core(None, 1_500_000_000 if now_s < 2 else 1_200_000_000)),
        {},
        "core 3 changed from 1500 to 1200 MHz",
    ),
    "_governor": (device(weather=lambda _: core("ondemand", None)), {}, "frequency governor ondemand"),
    "_load": (device(weather=lambda _: {"load_1min": 2.0}), {}, "busy before we began: load 2.0 on 4 cores"),
    "_providers": (
        device(
            session=lambda stem: (
                {"nodes_by_provider": {"CPUExecutionProvider": 1, "XnnpackExecutionProvider": 2}}
                if stem == "small"
                else {}
            )
        ),
        {},
        "not all models run on the same providers",
    ),
    "_unaccounted": (device(profiled=0.5), {"operators": True}, "its nodes add up to 45% of a profiled run"),
    "_short": (FakeDevice({"dense": 6e-5, "small": 3e-5}), {}, "small: a run takes 30 µs"),
    "_coarse_clock": (device(step_s=1e-4, noise=0.1), {}, "the clock advances in steps of 100 µs"),
    "_hypervisor": (device(facts={"hypervisor": True}), {}, "a virtual machine"),
}


def test_every_check_has_a_case():
    assert list(CASES) == [check.__name__ for check in diagnose.CHECKS]


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_with_a_device_becomes_a_caution_with_a_remedy(models, name):
    board, options, says = CASES[name]
    found = bench(models, board, **options)
    said = [caution for caution in found.cautions if says in caution.what]
    assert said, whats(found)
    assert all(len(caution.remedy) > 20 for caution in said)
    check = next(check for check in diagnose.CHECKS if check.__name__ == name)
    assert {what for what, _ in check(found)} == {caution.what for caution in said}
