"""The latency table: real contests, what is remembered, several writers, and files that are no table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rankfold.devices import card, probe
from rankfold.devices.counting import Counted
from rankfold.devices.local import LocalTransport
from rankfold.devices.qemu import QemuTransport
from rankfold.errors import InputError, Unreachable
from rankfold.records import Facts
from rankfold.runtime import serving
from rankfold.runtime.latency import (
    WHOLE_ROUNDS,
    Contest,
    Stopwatch,
    Table,
    Timed,
    key_of,
    setting_of,
    stopwatch,
    table_path,
)
from rankfold.runtime.turns import Options

from .fake_device import FakeDevice

SETTING = {"cpu_model": "board", "threads": 1}


def product(size: int) -> bytes:
    """x·W, W of size × size."""
    weight = numpy_helper.from_array(np.full((size, size), 0.01, np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, size])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)]).SerializeToString()


def watch_on(transport: LocalTransport | FakeDevice, path: Path, threads: int = 1) -> Stopwatch:
    with transport.launch() as process:
        facts = probe.facts(process)
    return stopwatch(transport, facts, Options(threads=threads), path)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_real_contest_says_which_is_faster_and_is_remembered(tmp_path, threads):
    transport = LocalTransport()
    with transport.launch() as process:
        if len(probe.facts(process).affinity) < threads:
            pytest.skip(f"needs {threads} cores")
    watch = watch_on(transport, tmp_path / "t.sqlite", threads=threads)
    small, large = product(32), product(512)
    contest = Contest(small, [small, large])
    assert watch.fill([contest]) == 1
    found = watch.table.known(small)
    assert set(found) == {key_of(large)}
    assert found[key_of(large)].ratio > 1
    assert found[key_of(large)].rounds > 3
    assert watch.fill([contest]) == 0
    assert watch.table.known(large) == {}


def test_ratios_are_those_of_the_device_whatever_its_speed_does(tmp_path):
    """Half speed in turns of 7 ms: the ratio is 3 all the same."""
    device = FakeDevice(
        {}, factor=lambda now_s: 2.0 if now_s % 0.014 < 0.007 else 1.0, time_of=lambda path: path.stat().st_size * 1e-9
    )
    one, three = b"x" * 1_000_000, b"x" * 3_000_000
    found = watch_on(device, tmp_path / "t.sqlite").timed(one, [three])[key_of(three)]
    assert found.ratio == pytest.approx(3, rel=0.01)
    assert found.error < 0.01


def test_slow_networks_have_as_many_rounds_as_a_ratio_needs(tmp_path):
    """Seconds alone would leave few: 5 of a launch, at 1.5 s a round, or more."""
    watch = watch_on(FakeDevice({}, time_of=lambda path: path.stat().st_size * 1e-6), tmp_path / "t.sqlite")
    one, two = b"x" * 500_000, b"x" * 1_000_000
    rounds = [
        watch.timed(one, [two], whole=True, launches=1, run_s=run_s)[key_of(two)].rounds for run_s in (0.0, 0.2, 0.8)
    ]
    assert rounds[0] < 6
    assert rounds[1] < WHOLE_ROUNDS <= rounds[2]


def test_a_contest_whose_connection_was_lost_is_held_again_and_no_other(tmp_path, monkeypatch):
    """1 is asked for facts, 2 and 3 hold the first contest and lose the connection in the second; 4 and 5 hold that."""
    monkeypatch.setattr(serving, "WAITS_S", (0.0,))
    models, told = [bytes([number]) for number in range(6)], list[tuple[int, int]]()

    def time_of(path: Path) -> float:
        if device.launches == 3 and path.read_bytes() == models[4]:
            raise Unreachable("no connection to the board")
        return 1e-3

    device = FakeDevice({}, time_of=time_of)
    watch = watch_on(device, tmp_path / "t.sqlite")
    contests = [Contest(models[0], models[:3]), Contest(models[3], models[3:])]
    assert watch.fill(contests, lambda *at: told.append(at)) == 4
    assert told == [(0, 4), (2, 4), (2, 4), (4, 4)]
    assert (device.launches, device.alive) == (5, 0)


def test_another_setting_knows_nothing(tmp_path):
    path = tmp_path / "t.sqlite"
    Table(path, SETTING).add(b"a", {"b": Timed(0.5, 0.01, 1e-3, 10)})
    assert Table(path, SETTING).known(b"a") == {"b": Timed(0.5, 0.01, 1e-3, 10)}
    assert Table(path, {**SETTING, "threads": 2}).known(b"a") == {}
    Table(path, SETTING).add(b"a", {"b": Timed(0.4, 0.01, 1e-3, 10)})
    assert Table(path, SETTING).known(b"a")["b"].ratio == 0.4
    assert Table(path, SETTING).count() == 1


def test_the_setting_is_all_that_decides_the_speed():
    with LocalTransport().launch() as process:
        facts = probe.facts(process)
    plain = setting_of(facts, Options())
    for changed in (
        setting_of(facts.model_copy(update={"onnxruntime_version": "9.9"}), Options()),
        setting_of(facts.model_copy(update={"cpu_model": "another"}), Options()),
        setting_of(facts, Options(session_config={"session.disable_prepacking": "1"})),
    ):
        assert changed != plain
    assert setting_of(facts.model_copy(update={"kernel": "another"}), Options()) == plain
    assert set(Facts.DECISIVE) <= set(plain)


_WRITER = """
import sys
from pathlib import Path
from rankfold.runtime.latency import Table, Timed
table = Table(Path(sys.argv[1]), {"cpu_model": "board", "threads": 1})
for number in range(40):
    table.add(b"reference", {f"{sys.argv[2]}-{number}": Timed(1.0, 0.1, 1.0, 1)})
"""


def test_several_processes_write_at_the_same_time_and_nothing_is_lost(tmp_path):
    path = tmp_path / "t.sqlite"
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(path), str(number)]) for number in range(4)]
    assert [writer.wait(120) for writer in writers] == [0] * 4
    assert Table(path, SETTING).count() == 160


def test_a_file_that_is_no_table_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a table, and long enough to be read as one\n" * 20)
    with pytest.raises(InputError, match=r"notes\.txt: expected a latency table, found file is not a database"):
        Table(path, SETTING)
    assert path.read_text().startswith("not a table")


def test_a_table_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"cannot write .*notes\.txt/t\.sqlite: .*; name another file"):
        Table(tmp_path / "notes.txt" / "t.sqlite", SETTING)


def test_the_table_lies_where_caches_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert table_path() == tmp_path / "rankfold" / "latency.sqlite"


def test_a_model_that_the_runtime_refuses_is_one_line(tmp_path):
    watch = watch_on(LocalTransport(), tmp_path / "t.sqlite")
    with pytest.raises(InputError, match="No graph was found in the protobuf") as raised:
        watch.timed(product(8), [onnx.ModelProto().SerializeToString() + b"\x08\x08"])
    assert "\n" not in str(raised.value)
    assert watch.table.count() == 0


# --- instructions instead of times --------------------------------------------------------------------------


@pytest.fixture
def counted(tmp_path, monkeypatch) -> list[list[int]]:
    """An emulator on which a model takes as many instructions as its file has bytes; what it was asked to count."""
    (tmp_path / "qemu-aarch64").touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    asked: list[list[int]] = []

    def count(transport: QemuTransport, request: dict[str, Any]) -> list[Counted]:
        sizes = [Path(path).stat().st_size for path in request["models"]]
        asked.append(sizes)
        return [Counted(size, 0, 0) for size in sizes]

    monkeypatch.setattr("rankfold.devices.counting.count", count)
    return asked


def test_counts_are_ratios_without_error_and_nothing_is_counted_twice(tmp_path, counted):
    with LocalTransport().launch() as process:
        facts = probe.facts(process).model_copy(update={"emulated": True})
    emulated = QemuTransport(card.find("qemu-cortex-a72"))
    watch = stopwatch(emulated, facts, Options(), tmp_path / "t.sqlite", "instructions")
    assert watch.cost == "instructions"
    one, two, three = (b"x" * size for size in (1000, 2000, 3000))
    assert watch.fill([Contest(one, [two, three]), Contest(two, [three])]) == 3
    assert counted == [[1000, 2000, 3000]]
    found = watch.timed(one, [two], whole=True, launches=4)[key_of(two)]
    assert counted == [[1000, 2000, 3000]]
    assert (found.ratio, found.error, len(found.launches)) == (
        pytest.approx(2, rel=1e-9),
        pytest.approx(0, abs=1e-9),
        4,
    )
    assert found.reference_s == pytest.approx(1e-6)
    assert watch.table.known(two)[key_of(three)].ratio == pytest.approx(1.5, rel=1e-9)


def test_times_and_instructions_are_not_taken_for_each_other(tmp_path, counted):
    with LocalTransport().launch() as process:
        facts = probe.facts(process)
    emulated = facts.model_copy(update={"emulated": True})
    with pytest.raises(InputError, match=r"an emulated device yields no times; .* --cost instructions"):
        stopwatch(QemuTransport(card.find("qemu-cortex-a72")), emulated, Options(), tmp_path / "t.sqlite")
    with pytest.raises(InputError, match="--cost instructions: they are counted on qemu-… alone"):
        stopwatch(LocalTransport(), facts, Options(), tmp_path / "t.sqlite", "instructions")
    assert stopwatch(LocalTransport(), facts, Options(), tmp_path / "t.sqlite").cost == "time"
