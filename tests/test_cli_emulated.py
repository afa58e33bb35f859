"""A board over ssh whose processor is emulated: a real sshd, and Python, numpy and onnxruntime for aarch64.

A script starts that Python under QEMU, by the name that it was called by itself: so it makes virtual environments and
runs in them as on a board, and only the shell there is this machine's.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from rankfold.devices import card
from rankfold.devices.reservation import Reserved
from rankfold.devices.ssh import SshTransport
from rankfold.devices.transport import serve, time_block
from rankfold.records import Bench

from .conftest import SOAK
from .emulation import emulated
from .runtime.conftest import save_convolution
from .servers import Server, interpreter

PROCESSOR = "Cortex-A72"
SSHD = pytest.mark.parametrize("board", ["sshd"], indirect=True)  # in soak too, where emulation takes minutes


@pytest.fixture
def python(board: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The interpreter of such a board; cards are written into a folder of the test's own."""
    program, *options = emulated("qemu-cortex-a72").python()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    return interpreter(board.home, f'exec {program} -0 "$0" {shlex.join(options)} "$@"')


def added(call, board: Server, python: str, like: str) -> None:
    told = {"like": like, "host": "board", "ssh-config": str(board.config), "python": python}
    code, _, error = call("devices add arm " + " ".join(f"--{key}={shlex.quote(value)}" for key, value in told.items()))
    assert code == 0, error


@pytest.mark.skipif(not SOAK, reason="an emulated process more: in soak")
@SSHD
def test_its_times_are_not_taken_for_a_boards(board: Server, python: str, call):
    added(call, board, python, "aarch64")
    code, said, error = call("devices check arm")
    assert (code, error) == (3, "rankfold: device 'arm' is not ready: processor\n")
    assert (
        "is emulated on another processor and yields no times; to compare outputs there, write emulated = true" in said
    )
    assert "ok       onnxruntime" in said


@SSHD
def test_its_outputs_are_compared_with_those_here(board: Server, python: str, tmp_path: Path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    added(call, board, python, "qemu-cortex-a72")
    assert card.find("arm").is_emulated
    save_convolution(tmp_path / "net.onnx", channels=8)
    code, said, error = call("bench net.onnx --device arm")
    assert code == 0, error
    assert "arm is emulated: it yields no times" in said
    bench = Bench.read(tmp_path / "bench.json")
    facts = bench.context.facts
    assert (facts.architecture, facts.cpu_model, facts.emulated) == ("aarch64", PROCESSOR, True)
    assert 0 < bench.agreements[0].relative <= 1e-5
    assert bench.pairs == []
    for line, refused in {
        "bench net.onnx --device arm --gate 'net <= net'": "--gate judges times, and device 'arm' is emulated",
        "bench net.onnx --device arm --governor performance": "--governor: nothing can set it on device 'arm'",
        "cost net.onnx --device arm": "instructions are counted on qemu-… alone, not on 'arm'",
    }.items():
        code, _, error = call(line)
        assert (code, error.count("\n")) == (2, 1)
        assert refused in error


@pytest.mark.skipif(not SOAK, reason="wheels for aarch64 are sent and unpacked there: in soak")
@SSHD
def test_it_is_set_up_reserved_and_timed_as_a_board_is(board: Server, python: str, tmp_path: Path, call):
    """All that a board is asked for. The times that come are of the emulator, and nobody is shown them."""
    added(call, board, python, "qemu-cortex-a72")
    code, said, error = call("devices setup arm")
    assert code == 0, error
    assert "collecting wheels for Python 3." in said
    assert "glibc 2." in said
    assert "aarch64" in said
    code, said, error = call("devices check arm")
    assert code == 0, error + said
    assert f"ok       processor    {PROCESSOR}, aarch64" in said
    packages = board.home / ".cache" / "rankfold" / "venv" / "lib"
    assert list(packages.glob("python3*/site-packages/onnxruntime/capi/*-aarch64-linux-gnu.so"))
    model = save_convolution(tmp_path / "net.onnx", channels=8)
    request = {"threads": 1, "provider": "cpu", "session_config": {}, "cores": [], "seed": 0}
    with Reserved(SshTransport(board.card(python=python)), "arm", None, print) as there, there.launch() as process:
        serve(process, {"model": there.place(model), **request})
        assert len(time_block(process, 3, 1, 60.0).samples_s) == 3
