"""Measuring with the real runtime on tiny models. Nothing here depends on how long anything takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from rankfold.devices.card import find
from rankfold.devices.child import ChildProcess
from rankfold.devices.local import LocalTransport
from rankfold.errors import DeviceError, InputError
from rankfold.records import Bench
from rankfold.runtime import turns
from rankfold.runtime.measure import Options, Progress, measure

from .conftest import save_convolution

HOST = find("host")
QUICK = Options(pairs=2, block_runs=3, dropped_runs=1)
FAR_FROM_ONE = 20.0  # a file against its copy; even two bad launches are nowhere near this


@pytest.fixture(autouse=True)
def short_pairs(monkeypatch) -> None:
    monkeypatch.setattr(turns, "_PAIR_S", turns._PAIR_S / 20)
    monkeypatch.setattr(turns, "_PAIR_WITH_POOL_S", turns._PAIR_WITH_POOL_S / 20)


class Recording(LocalTransport):
    """Remembers the processes it started."""

    def __init__(self) -> None:
        self.started: list[ChildProcess] = []

    def launch(self) -> ChildProcess:
        self.started.append(super().launch())
        return self.started[-1]

    def alive(self) -> list[int]:
        return [process.pid for process in self.started if Path(f"/proc/{process.pid}").exists()]


def run(models: dict[str, Path], options: Options = QUICK, **changes: Any) -> Bench:
    return measure(list(models.items()), LocalTransport(), HOST, options, **changes)


@pytest.fixture
def copy(convolution: Path) -> Path:
    path = convolution.with_name("copy.onnx")
    path.write_bytes(convolution.read_bytes())
    return path


def test_a_file_against_its_copy_and_a_narrower_one(convolution: Path, copy: Path, tmp_path: Path):
    narrow = save_convolution(tmp_path / "narrow.onnx", channels=4)
    steps: list[Progress] = []
    bench = run({"dense": convolution, "copy": copy, "narrow": narrow}, on_progress=steps.append)

    same = bench.comparisons[0]
    assert 1 / FAR_FROM_ONE < same.low <= same.ratio <= same.high
    assert 1 / FAR_FROM_ONE < same.ratio < FAR_FROM_ONE
    assert [(p.baseline, p.variant) for p in bench.pairs] == [("dense", "copy"), ("dense", "narrow")] * 2
    for pair in bench.pairs:
        assert [b.variant for b in pair.blocks] == [b.variant for b in reversed(pair.blocks)]
        assert {len(block.samples_s) for block in pair.blocks} == {bench.context.block_runs}
        assert sorted(b.start_s for b in pair.blocks) == [b.start_s for b in pair.blocks]
        assert all(s > 0 for block in pair.blocks for s in block.samples_s)
    assert [launch.pair for launch in bench.variants[0].launches] == [0, 1, 2, 3]
    assert [launch.pair for launch in bench.variants[2].launches] == [1, 3]
    assert bench.variants[0].sha256 == bench.variants[1].sha256 != bench.variants[2].sha256
    assert bench.variants[2].macs == 4 * 27 * 256
    assert bench.context.input_shapes == {"x": [1, 3, 16, 16]}
    assert bench.context.cores == [bench.context.facts.affinity[-1]]
    assert bench.context.provider == "CPUExecutionProvider"
    launch = bench.variants[0].launches[0]
    assert launch.nodes_by_provider["CPUExecutionProvider"] > 0
    assert (launch.peak_rss_bytes or 0) > (launch.baseline_rss_bytes or 0) > 0
    assert any("pairs, an interval wants 8" in caution.what for caution in bench.cautions)

    assert [(s.done, s.total) for s in steps] == [(done, 7) for done in range(8)]
    assert steps[3].left_s is None
    assert steps[7].left_s == 0
    path = tmp_path / "bench.json"
    bench.write(path)
    assert Bench.read(path) == bench


def test_one_model_alone_and_two_threads_where_there_are_two_cores(convolution: Path):
    threads = min(2, len(os.sched_getaffinity(0)))
    options = Options(threads=threads, pairs=2, session_config={"session.intra_op.allow_spinning": "0"})
    bench = run({"only": convolution}, options)
    assert bench.comparisons == []
    assert len(bench.variants[0].launches) == len(bench.pairs) == 2
    assert {block.variant for pair in bench.pairs for block in pair.blocks} == {"only"}
    assert len(bench.context.cores) == threads


def save_with_nan(path: Path) -> Path:
    model = onnx.load(save_convolution(path))
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0, 0, 0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    onnx.save(model, path)
    return path


def save_text(path: Path) -> Path:
    path.write_text("not a model")
    return path


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda path: path, r"cannot read .*bad\.onnx.*check the path"),
        (save_text, "bad.onnx: not an ONNX file, or cut short"),
        (save_with_nan, "bad.onnx: initialiser 'w' contains NaN"),
    ],
)
def test_a_bad_model_is_refused_before_any_process_starts(convolution: Path, tmp_path: Path, make: Any, match: str):
    transport = Recording()
    models = [("good", convolution), ("bad", make(tmp_path / "bad.onnx"))]
    with pytest.raises(InputError, match=match):
        measure(models, transport, HOST, QUICK)
    assert transport.started == []


def test_repeated_and_missing_names_are_refused(convolution: Path):
    with pytest.raises(InputError, match="two models are called 'a'"):
        measure([("a", convolution), ("a", convolution)], LocalTransport(), HOST)
    with pytest.raises(InputError, match="no model to measure"):
        measure([], LocalTransport(), HOST)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (Options(provider="xnnpack"), r"dense: provider 'xnnpack' is not in onnxruntime .* it has .*cpu"),
        (
            Options(session_config={"session.intra_op.allow_spining": "0"}),
            "dense: session key 'session.intra_op.allow_spining' is unknown; did you mean session.intra_op.all",
        ),
        (Options(threads=10_000), "10000 threads asked"),
    ],
)
def test_options_that_the_board_cannot_meet_are_refused(convolution: Path, options: Options, match: str):
    transport = Recording()
    with pytest.raises(InputError, match=match):
        measure([("dense", convolution)], transport, HOST, options)
    assert transport.alive() == []


def test_models_of_other_inputs_are_refused(convolution: Path, tmp_path: Path):
    larger = save_convolution(tmp_path / "larger.onnx", size=20)
    with pytest.raises(InputError, match=r"larger takes inputs \[\[1, 3, 20, 20\]\], dense takes"):
        run({"dense": convolution, "larger": larger})


def test_an_open_height_is_refused(convolution: Path):
    model = onnx.load(convolution)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, convolution)
    with pytest.raises(InputError, match=r"dense: input 'x' has shape .*only the first dimension may be open"):
        run({"dense": convolution})


def test_a_file_that_changes_meanwhile_is_noticed(convolution: Path, tmp_path: Path):
    other = save_convolution(tmp_path / "other.onnx", channels=4).read_bytes()

    def change(progress: Progress) -> None:
        if progress.done == progress.total:
            convolution.write_bytes(other)

    with pytest.raises(InputError, match=r"convolution\.onnx changed while it was measured"):
        run({"dense": convolution}, on_progress=change)


class Doomed(Recording):
    """Kills the process it started as number `victim`, at once or a while after it was started."""

    def __init__(self, victim: int, delay_s: float) -> None:
        super().__init__()
        self.victim, self.delay_s = victim, delay_s

    def launch(self) -> ChildProcess:
        process = super().launch()
        if len(self.started) == self.victim:
            threading.Timer(self.delay_s, os.kill, (process.pid, signal.SIGKILL)).start()
        return process


@pytest.mark.parametrize(
    ("victim", "delay_s", "match"),
    [
        (1, 0.0, "^the board process was killed by SIGKILL"),
        (2, 0.0, "^dense: the board process was killed by SIGKILL"),
        (5, 0.5, "^(dense|copy): the board process was killed by SIGKILL"),  # its pair lasts for seconds
    ],
    ids=["probe", "trial", "pair"],
)
def test_a_process_that_dies_is_a_device_error_and_leaves_no_orphan(
    convolution: Path, copy: Path, victim: int, delay_s: float, match: str
):
    transport = Doomed(victim, delay_s)
    long_turns = Options(pairs=2, block_runs=1_000_000)
    with pytest.raises(DeviceError, match=match):
        measure([("dense", convolution), ("copy", copy)], transport, HOST, long_turns)
    assert transport.alive() == []


SCRIPT = """
import sys
from pathlib import Path
from rankfold.devices import card, local
from rankfold.runtime.measure import Options, measure

class Telling(local.LocalTransport):
    def launch(self):
        process = super().launch()
        print(process.pid, flush=True)
        return process

if __name__ == "__main__":
    models = [(name, Path(sys.argv[1])) for name in ("a", "b")]
    try:
        measure(models, Telling(), card.find("host"), Options(pairs=100))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def test_ctrl_c_leaves_no_child(convolution: Path, tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, str(script), str(convolution)], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as parent:
        assert parent.stdout is not None
        children = [int(parent.stdout.readline()) for _ in range(5)]  # the last two are a pair
        parent.send_signal(signal.SIGINT)
        more, _ = parent.communicate(timeout=60)
    children += [int(line) for line in more.split()]
    assert parent.returncode == 130
    # One that was being started at that instant ends by itself, when it finds its stdin closed.
    deadline = time.monotonic() + 30
    while (alive := [pid for pid in children if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive == []
