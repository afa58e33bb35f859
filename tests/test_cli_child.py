"""What runs in a child: its progress reaches the terminal, and Ctrl-C ends all of it."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx
import pytest

from .export.nets import Net
from .making import RANKFOLD

WAIT_S = 120.0
TALKATIVE = "import rankfold.terminal as t; t.PLAIN_EVERY_S = 0.0; from rankfold.cli import main; main()"
COMPRESS = ("compress", "net.onnx", "-o", "small.onnx", "--macs", "0.6", "--tile", "1")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a small network."""
    net = Net(channels=3, spatial=(12, 12))
    onnx.save(net.model(net.head(net.block(net.block("input", "a", 16), "b", 24))), tmp_path / "net.onnx")
    return tmp_path


def test_where_stderr_is_no_terminal_progress_is_lines(folder):
    done = subprocess.run(
        [sys.executable, "-P", "-c", TALKATIVE, *COMPRESS], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert all(re.match(r"(scoring layers|factorising): \d/\d", line) for line in lines), lines
    assert any(line.startswith("scoring layers: 1/3") for line in lines), lines


def test_on_a_terminal_progress_is_a_bar_that_goes(folder):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    child = subprocess.Popen(
        [*RANKFOLD, *COMPRESS], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    shown = b"".join(iter(lambda: _read(ours), b"")).decode()
    os.close(ours)
    assert child.wait(WAIT_S) == 0, shown
    assert "scoring layers" in shown
    assert shown.endswith("\x1b[?25h"), "the cursor is shown again"


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the last process that had it has ended
        return b""


def test_ctrl_c_while_layers_are_timed_leaves_nothing(folder):
    """As a terminal sends it: to the whole foreground group, which the processes on the board are not in."""
    scratch, mark = folder / "scratch", uuid.uuid4().hex
    scratch.mkdir()
    command = [*RANKFOLD, "latency-table", "fill", "net.onnx", "--table", str(folder / "table.sqlite")]
    environment = {**os.environ, "TMPDIR": str(scratch), "RANKFOLD_TEST": mark}

    def contest_has_begun() -> bool:
        return len(alive(mark)) >= 4 and bool(list(scratch.glob("rankfold-*/**/*.onnx")))

    complaint = interrupted(command, environment, folder, contest_has_begun)
    assert complaint.splitlines() == [
        "rankfold: interrupted; nothing half-written is left, and a training run or a bench goes on with --resume, "
        "a sweep with the same command"
    ]
    assert alive(mark) == []
    assert list(scratch.iterdir()) == []


def interrupted(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, has_begun: Callable[[], bool]
) -> str:
    """What a command says on stderr when its whole group gets Ctrl-C after it has begun. It must exit 130."""
    parent = subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + WAIT_S
    while not has_begun():
        assert time.monotonic() < deadline, "it has not begun"
        assert parent.poll() is None, "it is over"
        time.sleep(0.05)
    os.killpg(parent.pid, signal.SIGINT)
    _, complaint = parent.communicate(timeout=WAIT_S)
    assert parent.returncode == 130
    return complaint


def alive(mark: str) -> list[str]:
    """Processes with this mark in their environment."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if mark.encode() in Path("/proc", name, "environ").read_bytes():
                found.append(name)
        except OSError:  # another user's, or gone
            continue
    return found
