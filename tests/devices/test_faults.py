"""What goes wrong on a board or on the way to it, with real servers: each is told in one line, and nothing stays."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rankfold.devices import child, probe, setup, ssh
from rankfold.devices.ssh import SshTransport
from rankfold.devices.transport import Outfit, checked, contest, pace, profile, serve, time_block
from rankfold.errors import DeviceError, InputError, Unreachable
from rankfold.records import Card

from ..servers import Server, changed, interpreter, on
from .test_ssh import HANGING, served, wait_until_gone

SMALL_BYTES, FILE_BYTES = 160_000, 300_000  # a disk that has room for board.py, and not for a file

ILLEGAL = """
import ctypes, mmap, platform
code = mmap.mmap(-1, 4096, prot=7)
code.write({"x86_64": bytes([0x0F, 0x0B]), "aarch64": bytes(4)}[platform.machine()])
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
"""

# The wall clock is another hour off at every look; clocks that only count stay as they are.
STEPPING = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long looks;
static long step(void) { ++looks; return 3600 * (looks % 2 ? looks : -looks); }
int clock_gettime(clockid_t clock, struct timespec *now) {
  int failed = (int)syscall(SYS_clock_gettime, clock, now);
  if (clock == CLOCK_REALTIME) now->tv_sec += step();
  return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
  struct timespec exact;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *out) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (out) *out = exact.tv_sec;
  return exact.tv_sec;
}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(probe.TILE_MODEL)
    return path


def asked(board: Server, python: str) -> Any:
    """What a board says of itself through this python."""
    with SshTransport(board.card(python=python)).launch() as process:
        return probe.facts(process)


# --- the board -----------------------------------------------------------------------------------------------


@on("sshd")
def test_a_disk_that_fills_up_is_named_and_left_as_it_was(board: Server, tmp_path: Path):
    there = board.mount("small", SMALL_BYTES)
    big = tmp_path / "big.onnx"
    big.write_bytes(os.urandom(FILE_BYTES))
    transport = SshTransport(board.card(workdir="small"))
    with transport.launch() as process:
        assert probe.weather(process)
        with pytest.raises(
            DeviceError, match=r"the disk of 'board' \(board\) is full; remove what is in small/files the"
        ):
            transport.place(big)
        assert probe.weather(process), "what runs goes on"
    assert [path.suffix for path in (there / "files").iterdir()] == [".py"]


@on("dropbear")
def test_a_disk_that_fills_up_in_setup_keeps_no_half_of_it(board: Server, tmp_path: Path, monkeypatch):
    there = board.mount("tight", 2 * FILE_BYTES)

    def packed(found: Outfit, archive: Path) -> None:
        (tmp_path / "wide").write_bytes(os.urandom(FILE_BYTES))
        subprocess.run(["tar", "-czf", archive, "-C", tmp_path, "wide"], check=True)

    monkeypatch.setattr(setup.wheels, "packed", packed)
    with pytest.raises(
        DeviceError, match=r"the disk of 'board' \(board\) is full; remove what is in tight/files there"
    ):
        setup.set_up(board.card(workdir="tight"), lambda what: None)
    assert [path.name for path in there.iterdir()] == ["files"]


@on("sshd")
@pytest.mark.parametrize(
    ("script", "match"),
    [
        (
            f"exec {sys.executable} -c '{ILLEGAL}'",
            r"killed by SIGILL: its processor lacks an instruction that numpy or",
        ),
        (f'exec {sys.executable} -S "$@"', r"No module named 'numpy'; `rankfold devices check board` says what is mis"),
        (
            "echo 'SyntaxError: future feature' >&2; exit 1",
            r"last line: SyntaxError: future feature; `rankfold devices c",
        ),
        ("echo 'OSError: [Errno 28] No space left on device' >&2; exit 1", r"the disk of 'board' \(board\) is full"),
    ],
    ids=["illegal instruction", "no runtime", "Python 2", "no room for a temporary file"],
)
def test_an_interpreter_that_cannot_is_named_with_what_to_do(board: Server, script: str, match: str):
    with pytest.raises(DeviceError, match=match):
        asked(board, interpreter(board.home, script))
    wait_until_gone(board)


@on("dropbear")
def test_a_runtime_that_is_too_old_is_refused(board: Server):
    python = changed(board.home, "import onnxruntime; onnxruntime.__version__ = '1.15.1'")
    with pytest.raises(DeviceError, match=r"onnxruntime there is 1\.15\.1, expected 1\.16 or newer; update it"):
        asked(board, python)


@on("dropbear")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("board.weather = lambda request: {'throttled': 'x' * 99999}", r"answer exceeds 0 MiB"),
        (
            "timed = board.run_timed; board.run_timed = lambda *given: [-s for s in timed(*given)]",
            r"'first_run_s': Input",
        ),
        ("board.Server.block = lambda *given: sys.stdout.write('x')", r"answered int, expected an object"),
    ],
    ids=["oversized", "negative", "no object"],
)
def test_forged_answers_are_refused_and_the_process_ends(
    board: Server, model: Path, monkeypatch, change: str, match: str
):
    monkeypatch.setattr(child, "_MAX_ANSWER_BYTES", 1 << 16)
    transport = SshTransport(board.card(python=changed(board.home, change)))
    with transport.launch() as process, pytest.raises(DeviceError, match=match):
        looked_and_timed(process, transport.place(model))
    wait_until_gone(board)


def looked_and_timed(process: Any, placed: str) -> None:
    probe.weather(process)
    time_block(served(process, placed), 2, 0, 60.0)


@on("sshd")
def test_a_wall_clock_that_is_set_while_measuring_changes_no_duration(board: Server, model: Path, monkeypatch):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a library that sets the clock needs a C compiler")
    library, source = board.home / "stepping.so", board.home / "stepping.c"
    source.write_text(STEPPING)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    python = interpreter(board.home, f'LD_PRELOAD={library} exec {sys.executable} "$@"')
    began, now, hours = time.monotonic(), time.time, iter(range(1 << 20))
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * next(hours))
    transport = SshTransport(board.card(python=python))
    request = {"threads": 1, "provider": "cpu", "session_config": {}, "cores": [], "seed": 0, "model": str(model)}
    with transport.launch() as process:
        found = checked(Outfit, process.ask({"command": "outfit", "folder": "."}, 60.0))
        assert abs(found.time_s - now()) >= 3600, "it does step"
        session = serve(process, request)
        block = time_block(process, 20, 2, 60.0)
        frames = pace(process, 100.0, 5)
        (turns,) = contest(process, {**request, "models": [str(model)], "alone": False, "threads": 2}, 3, 60.0)
        with pytest.raises(InputError, match="the clock there was set while the runtime's profile"):
            profile(process, request, 3, 60.0)
    durations = [session.session_creation_s, session.first_run_s, *session.warmup_s, *block.samples_s, *turns]
    durations += [*frames.samples_s, *frames.responses_s, block.cpu_s or 0.0]
    assert min(durations) >= 0
    assert max(durations) < time.monotonic() - began


# --- the way to it -------------------------------------------------------------------------------------------


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in ("ConnectTimeout", "ServerAliveInterval", "ServerAliveCountMax"):
        monkeypatch.setitem(ssh._OPTIONS, option, 1)


@on("sshd")
def test_a_server_that_stops_in_the_middle_of_a_run_is_given_up(board: Server, model: Path, monkeypatch):
    impatient(monkeypatch)
    board.cut()
    transport = SshTransport(board.card())
    with transport.launch() as process:
        served(process, transport.place(model))
        threading.Timer(0.1, board.cut, (signal.SIGSTOP,)).start()
        with pytest.raises(Unreachable, match=r"no connection to 'board' \(board\): .*; is it on"):
            process.ask(HANGING, 60.0)
    board.cut()
    wait_until_gone(board)


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-board\r\n"], ids=["before a word", "after its name"])
def test_a_server_that_hangs_before_it_lets_us_in_is_given_up(greeting: bytes, monkeypatch):
    impatient(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        threading.Thread(target=greet, args=(silent, greeting), daemon=True).start()
        told = {"transport": "ssh", "host": "127.0.0.1", "port": silent.getsockname()[1], "ssh_config": os.devnull}
        card = Card.model_validate({"name": "silent", "about": "a test", "tested": "never", **told})
        with pytest.raises(Unreachable, match=r"no connection to 'silent' \(127\.0\.0\.1\): .*(timed out|ended)"):
            SshTransport(card).python_version()
    with pytest.raises(Unreachable, match="Connection refused"):
        SshTransport(card).python_version()


def greet(server: socket.socket, greeting: bytes) -> None:
    """Say this to the first who comes, and no more."""
    talk, _ = server.accept()
    with talk:
        talk.sendall(greeting)
        while talk.recv(1 << 16):
            pass
