"""The evidence that intervals cover: rows, going on, what they say; and, in `make soak`, a short run of it."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import pytest

from rankfold.benchmarks import evidence
from rankfold.benchmarks.transports import SLOW, Impatient, Replayed, Wrapped
from rankfold.devices.card import find
from rankfold.devices.child import ChildProcess
from rankfold.devices.local import LocalTransport
from rankfold.errors import InputError
from rankfold.records import EvidenceRow
from rankfold.runtime import costs
from rankfold.runtime.measure import Options, measure

from ..conftest import SOAK
from ..runtime.fake_device import FakeDevice

SPIN_S = {True: 0.1, False: 2.0}  # after a run; those who do not wait spin long enough to be caught on a busy machine
SHORT = 20
LEAST_COVERED = 16  # of 20 intervals of 95 %: fewer have a chance of 0.3 %


def row(seed: int, low: float, high: float, **changes: Any) -> EvidenceRow:
    return EvidenceRow(
        scenario="same",
        seed=seed,
        config_hash=evidence.config_hash(evidence.SCENARIOS["same"], 0),
        machine="here",
        threads=1,
        pairs=8,
        ratio=(low * high) ** 0.5,
        low=low,
        high=high,
        latency_s=1e-3,
        cautions=[],
        took_s=11.0,
        started_at="2026-01-01T00:00:00+00:00",
    ).model_copy(update=changes)


def test_what_is_there_is_not_measured_again_and_each_row_is_written_at_once(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(evidence, "_machine", lambda: "here")
    monkeypatch.setattr(evidence, "compared", lambda scenario, seed, extra, device: row(seed, 0.99, 1.01))
    results = tmp_path / "evidence.jsonl"
    known = [row(seed, 0.99, 1.01) for seed in range(300) if seed not in (3, 7)]
    elsewhere = row(3, 0.9, 1.1, machine="elsewhere")
    results.write_text("".join(one.model_dump_json() + "\n" for one in [*known, elsewhere]))
    monkeypatch.setattr(sys, "argv", ["evidence", "run", "same", "--results", str(results)])
    evidence.main()
    lines = [EvidenceRow.model_validate_json(line) for line in results.read_text().splitlines()]
    assert lines == [*known, elsewhere, row(3, 0.99, 1.01), row(7, 0.99, 1.01)]
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| same")]
    assert [line.split("|")[4].strip() for line in table] == ["300", "1"]


def test_the_table_counts_what_contains_one():
    rows = [row(0, 0.99, 1.01), row(1, 1.001, 1.01, cautions=["x"]), row(2, 0.98, 0.999), row(3, 0.9, 1.1)]
    (line,) = evidence.table(rows).splitlines()[2:]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[3:7] == ["4", "2", "1", "1"]
    assert cells[8] == "1"


def test_an_unknown_scenario_is_one_line(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evidence", "run", "sane", "--results", str(tmp_path / "e.jsonl")])
    with pytest.raises(SystemExit) as stop:
        evidence.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("rankfold: unknown scenario 'sane'; known are same, truth, extra")


@pytest.mark.parametrize(("slower_there", "apart"), [(1.0, False), (1.03, True)])
def test_both_ways_to_this_machine_are_compared(monkeypatch, slower_there: float, apart: bool):
    run_s = {"base": 2e-3, "extra": 2.02e-3}
    here = FakeDevice(run_s)
    there = FakeDevice({**run_s, "extra": slower_there * run_s["extra"]})
    monkeypatch.setattr(evidence, "transport_of", lambda device: there)
    scenario = dataclasses.replace(evidence.SCENARIOS["over-ssh"], transport=lambda seed: here)
    found = evidence.compared(scenario, 1, 16, find("host"))
    assert found.ratio == pytest.approx(slower_there, rel=0.005)
    assert (found.low > 1) == apart
    assert found.pairs == 8
    there.facts = {"cpu_model": "another"}
    with pytest.raises(
        InputError, match=r"expected a way to this very machine \(Test Board, onnxruntime 1\.32\.0\), found"
    ):
        evidence.compared(scenario, 0, 16, find("host"))


def test_over_ssh_needs_a_device(tmp_path: Path, monkeypatch, capsys):
    for more in ([], ["--device", "host"]):
        arguments = ["evidence", "run", "over-ssh", *more, "--results", str(tmp_path / "e.jsonl")]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stop:
            evidence.main()
        assert stop.value.code == 2
        assert capsys.readouterr().err.startswith("rankfold: over-ssh needs --device with a card of transport ssh")


def test_the_extra_work_is_about_one_per_cent_of_the_convolutions():
    def macs(extra: int) -> int:
        return costs.count(evidence.network(extra)).macs or 0

    onnx.checker.check_model(evidence.network(16))
    assert 1.001 < macs(evidence.EXTRA[0]) / macs(0) < macs(evidence.EXTRA[-1]) / macs(0) < 1.02
    assert evidence.network() == evidence.network()


def test_the_replayed_machine_has_two_speeds_and_changes_between_them():
    now = {"s": 0.0}
    machine = Replayed(5, clock=lambda: now["s"])
    levels = []
    for _ in range(4000):
        now["s"] += 0.05
        levels.append(machine._factor())
    assert set(levels) == {1.0, SLOW}
    assert 0.2 < levels.count(SLOW) / len(levels) < 0.6
    changes = sum(a != b for a, b in itertools.pairwise(levels))
    assert 80 < changes < 250


class Watching(LocalTransport):
    """Before each block, counts the other processes whose threads run or wait for a core."""

    def __init__(self, inner: LocalTransport) -> None:
        self.inner, self.alive, self.busy, self.blocks = inner, [], 0, 0

    def launch(self) -> Any:
        process = self.inner.launch()
        self.alive = [one for one in self.alive if Path(f"/proc/{one.pid}").exists()] + [process]
        return _Watched(self, process)


class _Watched(Wrapped):
    def __init__(self, watching: Watching, process: ChildProcess) -> None:
        super().__init__(process)
        self.watching = watching

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        if request["command"] == "block":
            self.watching.blocks += 1
            others = [one for one in self.watching.alive if one is not self._process]
            self.watching.busy += any(spins(one.pid) for one in others)
        return super().ask(request, limit_s)


def spins(pid: int) -> bool:
    """Whether a thread of a process runs, or wants to, three times within 10 ms; one that just answers does not."""
    for _ in range(3):
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        if not any(stat.rpartition(")")[2].split()[0] == "R" for stat in stats):
            return False
        time.sleep(0.005)
    return True


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a pool needs two cores")
@pytest.mark.parametrize("patient", [True, False])
def test_no_pool_spins_while_another_is_timed(tmp_path: Path, patient: bool):
    """Pools that are told to spin on after a run: without the wait they do, while the other is timed."""
    transport = Watching(LocalTransport() if patient else Impatient())
    models = evidence.written(tmp_path, 0)
    spin = {"session.intra_op.spin_duration_us": str(round(SPIN_S[patient] * 1e6))}
    measure(models, transport, find("host"), Options(threads=2, pairs=2, session_config=spin))
    assert transport.blocks >= 8
    assert transport.busy == 0 if patient else transport.busy > transport.blocks / 2, transport.busy


@pytest.mark.skipif(not SOAK, reason="it measures: only in `make soak`")
@pytest.mark.parametrize("name", ["same", "same-replayed"])
def test_intervals_of_equal_files_contain_one(tmp_path: Path, name: str):
    found = evidence.Evidence(tmp_path / "rows.jsonl")
    rows = [found.measure(evidence.SCENARIOS[name], seed) for seed in random.Random(0).sample(range(1000), SHORT)]
    assert sum(one.low <= 1 <= one.high for one in rows) >= LEAST_COVERED
    if name == "same-replayed":
        assert sum(bool(one.cautions) for one in rows) >= SHORT - 1


@pytest.mark.skipif(not SOAK, reason="it measures: only in `make soak`")
def test_a_competitor_on_the_same_core_is_noticed(tmp_path: Path):
    found = evidence.Evidence(tmp_path / "rows.jsonl")
    rows = [found.measure(evidence.SCENARIOS["same-contended"], seed) for seed in range(5)]
    assert all(one.cautions for one in rows)
