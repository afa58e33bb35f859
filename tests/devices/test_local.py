"""The local transport against children that behave badly."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rankfold.devices import child as children
from rankfold.devices import probe
from rankfold.devices.child import ChildProcess
from rankfold.devices.local import BOARD, LocalTransport, death
from rankfold.errors import DeviceError

LIMIT_S = 60.0
READ_REQUEST = "import os, sys, time; sys.stdin.readline(); "


def child(code: str) -> ChildProcess:
    return ChildProcess([sys.executable, "-I", "-c", READ_REQUEST + code], death)


@pytest.mark.parametrize(
    ("code", "match"),
    [
        ("sys.exit(3)", "the board process ended with status 3; check"),
        ("sys.stderr.write('first\\n\\x1b[31mlast words\\n\\n'); sys.exit(1)", r"its last line:  \[31mlast words;"),
        ("raise MemoryError", "ended with status 1, its last line: MemoryError"),
        ("os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
        ("os.kill(os.getpid(), 4)", "was killed by SIGILL"),
        ("print('no json', flush=True)", "answered no JSON but b'no json"),
        ("print('[1]', flush=True)", "answered list, expected an object"),
        ("os.write(1, b'[' * 100000 + bytes([10]))", "answered no JSON"),
    ],
)
def test_a_child_that_fails_is_a_device_error(code: str, match: str):
    with child(code) as process, pytest.raises(DeviceError, match=match):
        process.ask({}, LIMIT_S)


def test_a_child_that_does_not_answer_is_given_up_and_killed():
    with child("time.sleep(600)") as process, pytest.raises(DeviceError, match=r"no answer .* within 0\.1 s"):
        process.ask({}, 0.1)
    assert not Path(f"/proc/{process.pid}").exists()


def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(children, "_MAX_ANSWER_BYTES", 1 << 20)
    endless = "\nwhile True: os.write(1, b'x' * 65536)"
    with child(endless) as process, pytest.raises(DeviceError, match="exceeds 1 MiB"):
        process.ask({}, LIMIT_S)
    assert not Path(f"/proc/{process.pid}").exists()


def test_asking_a_dead_child_says_how_it_died():
    with child("sys.exit(7)") as process:
        for _ in range(2):
            with pytest.raises(DeviceError, match="ended with status 7"):
                process.ask({}, LIMIT_S)


def test_a_missing_interpreter_is_a_device_error():
    with pytest.raises(DeviceError, match="cannot start /no/python: No such file"):
        ChildProcess(["/no/python"], death)


def test_what_a_library_prints_does_not_mix_with_the_answers(tmp_path: Path):
    noisy = tmp_path / "noisy.py"
    noisy.write_text(
        "import importlib.util, os\n"
        f"spec = importlib.util.spec_from_file_location('board', {str(BOARD)!r})\n"
        "board = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(board)\n"
        "weather = board.weather\n"
        "def loud(request):\n"
        "    print('noise', flush=True)\n"
        "    os.write(1, b'more noise')\n"
        "    return weather(request)\n"
        "board.weather = loud\n"
        "board.main()\n"
    )
    with ChildProcess([sys.executable, "-I", str(noisy)], death) as process:
        assert probe.weather(process).memory_available_bytes
        assert probe.weather(process).memory_available_bytes


def test_the_child_ends_when_we_let_go():
    with LocalTransport().launch() as process:
        assert Path(f"/proc/{process.pid}").exists()
    assert not Path(f"/proc/{process.pid}").exists()
