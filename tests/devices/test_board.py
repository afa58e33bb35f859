"""board.py, by itself and as the process that it is on a board."""

from __future__ import annotations

import ast
import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from rankfold.devices import board
from rankfold.devices.local import BOARD, LocalTransport
from rankfold.devices.probe import TILE_MODEL
from rankfold.devices.transport import Session, load_model, outputs, serve, time_block
from rankfold.errors import DeviceError, InputError

ALLOWED_IMPORTS = set(sys.stdlib_module_names) | {"numpy", "onnxruntime"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "odd name; 'quoted' ü.onnx"
    path.write_bytes(TILE_MODEL)
    return path


def request_for(model: Path, **changes: Any) -> dict[str, Any]:
    request = {"model": str(model), "threads": 1, "provider": "cpu", "session_config": {}, "cores": [], "seed": 0}
    return {**request, **changes}


def try_to_serve(model: Path, **changes: Any) -> Session:
    with LocalTransport().launch() as process:
        return serve(process, request_for(model, **changes))


def test_it_is_python_3_8_and_needs_nothing_of_ours():
    tree = ast.parse(BOARD.read_text(), feature_version=(3, 8))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or "."])
    }
    assert "onnxruntime" in imported
    assert imported <= ALLOWED_IMPORTS


def test_the_blocked_layout_is_told_by_its_nodes():
    """Every optimised file names the layout's operators, also where none of them is used: on aarch64, or here."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16, 8, 8]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "plain", [x], [y])
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert not board.uses_nchwc(plain.SerializeToString())
    node = helper.make_node("Conv", ["x", "w"], ["y"], domain="com.microsoft.nchwc")
    assert board.NCHWC_NODE in node.SerializeToString()


def test_a_model_is_loaded_pinned_warmed_up_and_timed(model: Path):
    core = max(os.sched_getaffinity(0))
    with LocalTransport().launch() as process:
        session = serve(process, request_for(model, cores=[core]))
        assert os.sched_getaffinity(process.pid) == {core}
        block = time_block(process, runs=7, dropped=2, limit_s=60)
    assert session.input_shapes == {"x": [1, 16, 8, 8]}
    assert session.providers == ["CPUExecutionProvider"]
    assert session.nodes_by_provider == {"CPUExecutionProvider": 1}
    assert len(session.warmup_s) >= 3
    assert len(block.samples_s) == 7
    assert (block.cpu_s or 0) > 0


def test_a_model_is_loaded_once_for_all_its_batches(model: Path, tmp_path: Path):
    inputs = tmp_path / "inputs.npz"
    with LocalTransport().launch() as process:
        load_model(process, request_for(model))
        model.unlink()
        for value in (0.0, 1.0):
            np.savez(inputs, x=np.full((1, 16, 8, 8), value, np.float32))
            (found,) = outputs(process, str(inputs))
            assert found.shape == (1, 16, 8, 8)
            assert np.all(found == 16 * 0.5 * value)


def test_a_board_that_dies_in_a_block_is_a_device_error(model: Path):
    with LocalTransport().launch() as process:
        serve(process, request_for(model))
        threading.Timer(0.2, os.kill, (process.pid, signal.SIGKILL)).start()
        with pytest.raises(DeviceError, match="was killed by SIGKILL"):
            time_block(process, runs=100_000_000, dropped=0, limit_s=60)
    assert not Path(f"/proc/{process.pid}").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"provider": "xnnpack"}, r"provider 'xnnpack' is not in onnxruntime 1\..* it has .*cpu"),
        ({"session_config": {"session.intra_op.allow_spining": "0"}}, r"did you mean session\.intra_op\.allow_spin"),
        ({"session_config": {"zzz": "0"}}, "session key 'zzz' is unknown"),
    ],
)
def test_what_it_cannot_meet_it_refuses_with_the_reason(model: Path, changes: dict[str, Any], match: str):
    with pytest.raises(InputError, match=match):
        try_to_serve(model, **changes)


def test_what_the_runtime_cannot_load_it_refuses_with_the_runtimes_words(tmp_path: Path):
    with pytest.raises(InputError, match=r"missing\.onnx.*doesn't exist"):
        try_to_serve(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(InputError, match="Protobuf parsing failed"):
        try_to_serve(tmp_path / "text.onnx")


def test_a_provider_that_takes_no_node_is_refused(model: Path):
    import onnxruntime

    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this wheel has no provider that takes no node")
    with pytest.raises(InputError, match="no node of this model runs on AzureExecutionProvider; they run on CPU"):
        try_to_serve(model, provider="azure")


def test_a_runtime_that_cannot_say_what_ran_where_is_believed_for_the_cpu_only():
    assert board.placement(object(), "CPUExecutionProvider") == {}
    with pytest.raises(board.Refused, match="cannot say which nodes run on XnnpackExecutionProvider"):
        board.placement(object(), "XnnpackExecutionProvider")


def cpu_ticks(pid: int) -> int:
    """User and system time of a process, in clock ticks (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def save_wide_matmul(path: Path) -> Path:
    """A product large enough that the runtime spreads it over its threads."""
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["s"], ["w"], value=helper.make_tensor("v", 1, [1], [0.5])),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [256, 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [256, 256])],
        [helper.make_tensor("s", TensorProto.INT64, [2], [256, 256])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a pool needs two cores")
def test_a_pool_that_would_spin_on_sleeps_before_the_turn_ends(tmp_path: Path):
    """Spinning is asked to last 300 ms: without the wait some 20 ticks would pass in the next 200 ms."""
    spinning = {"session.intra_op.spin_duration_us": "300000"}
    with LocalTransport().launch() as process:
        serve(process, request_for(save_wide_matmul(tmp_path / "m.onnx"), threads=2, session_config=spinning))
        time_block(process, runs=5, dropped=2, limit_s=60)
        before = cpu_ticks(process.pid)
        time.sleep(0.2)
        assert cpu_ticks(process.pid) - before <= 2  # a busy wait of 200 ms is 20 ticks of 10 ms


@pytest.mark.parametrize(("shape", "fixed"), [([], []), (["N", 3], [1, 3]), ([None, 3], [1, 3]), ([8, 3], [8, 3])])
def test_only_the_batch_may_be_open(shape: list[Any], fixed: list[int]):
    assert board.fixed_shape("x", shape) == fixed


@pytest.mark.parametrize("shape", [[1, "height"], [1, None], [1, 0]])
def test_other_open_dimensions_are_refused(shape: list[Any]):
    with pytest.raises(board.Refused, match="only the first dimension may be open"):
        board.fixed_shape("x", shape)


@pytest.mark.parametrize("kind", ["float", "float16", "double"])
def test_inputs_are_fixed_by_the_seed_and_never_denormal(kind: str):
    made = board.make_input(f"tensor({kind})", "x", [1000, 100], seed=1)
    assert np.array_equal(made, board.make_input(f"tensor({kind})", "x", [1000, 100], seed=1))
    assert not np.array_equal(made, board.make_input(f"tensor({kind})", "x", [1000, 100], seed=2))
    assert abs(made).min() >= np.finfo(made.dtype).smallest_normal
    assert made.astype(float).std() == pytest.approx(1, abs=0.02)  # normal; 100 000 values give ± 0.2 %


@pytest.mark.parametrize("kind", ["int64", "int32", "uint8", "int8", "bool"])
def test_integers_are_valid_indices(kind: str):
    made = board.make_input(f"tensor({kind})", "x", [4, 4], seed=1)
    assert made.dtype == kind
    assert made.min() >= 0


@pytest.mark.parametrize("kind", ["tensor(string)", "seq(tensor(float))"])
def test_other_inputs_are_refused(kind: str):
    with pytest.raises(board.Refused, match="a tensor of numbers is expected"):
        board.make_input(kind, "x", [1], seed=1)


class FakeSession:
    """Takes 10 ms a run at first and a hundredth less each time, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, settles: bool) -> None:
        self.now, self.run_s, self.settles = 0.0, 0.01, settles
        monkeypatch.setattr(board.time, "perf_counter", lambda: self.now)

    def run(self, names: None, feed: dict[str, Any]) -> None:
        del names, feed
        self.now += self.run_s
        self.run_s *= 0.99 if self.settles and self.run_s > 0.005 else 1.0 if self.settles else 1.01


def test_warming_up_ends_when_it_is_stable_or_its_time_is_up(monkeypatch: pytest.MonkeyPatch):
    settling = board.warm_up(FakeSession(monkeypatch, settles=True), {}, first_s=0.01)
    assert settling[-1] == pytest.approx(0.005, rel=0.02)
    assert sum(settling) < board.WARMUP_LIMIT_S
    growing = board.warm_up(FakeSession(monkeypatch, settles=False), {}, first_s=0.01)
    assert board.WARMUP_LIMIT_S <= sum(growing) < 2 * board.WARMUP_LIMIT_S


def test_a_thread_that_never_rests_is_refused(monkeypatch: pytest.MonkeyPatch):
    ticks = iter(range(1 << 20))
    monkeypatch.setattr(board.time, "process_time", lambda: float(next(ticks)))
    monkeypatch.setattr(board.time, "sleep", lambda _: None)
    with pytest.raises(board.Refused, match=r"threads still spin 5 s .* session\.intra_op\.spin_duration_us"):
        board.wait_until_quiet()


def test_system_files_are_read_with_units(tmp_path: Path):
    status = tmp_path / "status"
    status.write_text("VmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\n")
    assert board.kilobytes(str(status), "VmHWM") == 2048 * 1024
    assert board.kilobytes(str(status), "VmSwap") is None
    assert board.kilobytes(str(tmp_path / "none"), "VmHWM") is None
    release = tmp_path / "os-release"
    release.write_text('NAME="Test: OS"\nPRETTY_NAME="Test OS 1"\nHOME_URL="https://example.org/"\n')
    assert board.fields(str(release))["PRETTY_NAME"] == "Test OS 1"
    assert board.fields(str(release))["HOME_URL"] == "https://example.org/"
    assert board.read_number(str(release)) is None


CONTEST = {"cores": [], "session_config": {}, "provider": "cpu", "seed": 0, "rounds": 3, "seconds": 60.0}


class _Waiting:
    """A session whose run works for a moment, then waits: as one does whose core is taken away."""

    def get_inputs(self) -> list:
        return []

    def run(self, outputs: object, feed: object) -> None:
        until = time.thread_time() + 1e-3
        while time.thread_time() < until:
            pass
        time.sleep(5e-3)


@pytest.mark.parametrize(("threads", "counts_waiting"), [(1, False), (2, True)])
def test_a_contest_does_not_count_what_a_competitor_takes(monkeypatch, threads, counts_waiting):
    monkeypatch.setattr(board, "open_session", lambda request, provider: _Waiting())
    monkeypatch.setattr(gc, "disable", lambda: None)
    (samples,) = board.contest({**CONTEST, "models": ["a"], "threads": threads, "alone": False})["samples_s"]
    assert len(samples) == 3
    assert all((sample >= 6e-3) == counts_waiting for sample in samples), samples
    assert min(samples) >= 1e-3


class _Counting:
    """A session that takes so long, in a log of who ran."""

    def __init__(self, name: str, run_s: float, log: list[str]) -> None:
        self.name, self.run_s, self.log = name, run_s, log

    def get_inputs(self) -> list:
        return []

    def run(self, outputs: object, feed: object) -> None:
        self.log.append(self.name)
        time.sleep(self.run_s)


def test_a_network_in_a_contest_runs_as_when_it_is_served(monkeypatch):
    """Two runs of its own go before each that is timed; a long one needs none once that is known."""
    log: list[str] = []
    takes = {"short": 1e-4, "long": 2 * board.LONG_RUN_S}
    monkeypatch.setattr(
        board, "open_session", lambda request, _: _Counting(request["model"], takes[request["model"]], log)
    )
    monkeypatch.setattr(gc, "disable", lambda: None)
    found = board.contest({**CONTEST, "models": list(takes), "threads": 2, "alone": True})["samples_s"]
    assert [len(samples) for samples in found] == [3, 3]
    assert log.count("short") == 3 * (2 + 3)
    assert log.count("long") == 3 * (2 + 1) + 2
    assert all("".join(name[0] for name in log[k : k + 3]) in ("sss", "lll") for k in range(0, 12, 3))
