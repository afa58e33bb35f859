"""Work on a stranger's file in a child: whatever it does, its parent goes on, with one line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# In a fresh interpreter, as the command line forks: the test process itself has threads.
HEAD = """
import ctypes, os, signal, sys, tempfile, time
import numpy as np
from rankfold.errors import CheckFailed, DeviceError, Inconclusive, InputError, RankfoldError
from rankfold.export.guard import guarded

def tried(work, **limits):
    try:
        print("result", guarded(work, **limits))
    except RankfoldError as error:
        print(type(error).__name__, error.exit_code, error)

"""


def _run(code: str) -> list[str]:
    program = HEAD + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_results_and_errors_come_back():
    lines = _run("""
        def refuse():
            raise InputError("no such thing: ü\\x1b")

        def fail():
            raise CheckFailed("not exact")

        tried(lambda: "ü" * 200_000)
        tried(refuse)
        tried(fail)
    """)
    assert lines == ["result " + "ü" * 200_000, "InputError 2 no such thing: ü\x1b", "CheckFailed 1 not exact"]


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("ctypes.string_at(0)", r"CheckFailed 1 the ONNX libraries crashed on this file \(SIGSEGV\)"),
        ("os.abort()", r"CheckFailed 1 the ONNX libraries crashed on this file \(SIGABRT\)"),
        ("os._exit(0)", r"CheckFailed 1 the ONNX libraries crashed on this file \(no answer\)"),
        ("time.sleep(60)", "InputError 2 no result within 1 s; the file may loop for ever, or raise --limit-s"),
        (
            "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64)) or time.sleep(60)",
            "InputError 2 no result within 1 s",
        ),
        (
            "np.ones(1 << 40)",
            "InputError 2 it needs more than 1.0 GiB of memory; give smaller inputs or raise --memory",
        ),
        ("bytearray(3 << 30)", "InputError 2 it needs more than 1.0 GiB of memory"),
        (
            "[].pop()",
            "CheckFailed 1 IndexError in <string>:.*: pop from empty list; nothing was written, please report",
        ),
        ("(lambda f: f(f))(lambda f: f(f))", "CheckFailed 1 RecursionError in <string>"),
    ],
    ids=["segfault", "abort", "exit", "sleep", "deaf", "array", "bytes", "defect", "recursion"],
)
def test_whatever_happens_in_the_child_is_one_line_in_the_parent(code, line):

    limit_s = 1 if "sleep" in code else 300
    lines = _run(f"tried(lambda: str({code}), limit_s={limit_s}, memory_bytes=1 << 30)\ntried(lambda: 'goes on')")
    assert len(lines) == 2
    assert re.match(line, lines[0]), lines[0]
    assert lines[1] == "result goes on"


def test_no_child_is_left_behind():
    lines = _run("""
        def say():
            print(os.getpid(), flush=True)
            time.sleep(60)

        tried(say, limit_s=1)
    """)
    child = int(lines[0])
    assert not Path(f"/proc/{child}").exists()


def test_an_interrupt_ends_both_the_child_in_its_own_time():
    program = HEAD + textwrap.dedent("""
        def wait():
            try:
                print(os.getpid(), flush=True)
                time.sleep(60)
            finally:
                time.sleep(0.5)
                print("closed", flush=True)

        tried(wait)
    """)
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.killpg(parent.pid, signal.SIGINT)
    said, complaint = parent.communicate(timeout=60)
    assert "KeyboardInterrupt" in complaint
    assert said == "closed\n"
    assert not Path(f"/proc/{child}").exists()


def test_a_child_that_missed_the_first_signal_is_told_again():
    lines = _run("""
        def wait():
            ends = signal.getsignal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, ends))
            try:
                time.sleep(60)
            finally:
                print("closed", flush=True)

        tried(wait, limit_s=0.5)
    """)
    assert lines[0] == "closed"
    assert lines[1].startswith("InputError 2 no result within 0.5 s")


@pytest.mark.parametrize("end", ["time.sleep(60)", "os.abort()", "os.kill(os.getpid(), signal.SIGKILL)", "None"])
def test_however_a_child_ends_its_temporary_files_go(tmp_path, end):
    code = f"""
        tempfile.tempdir = {str(tmp_path)!r}

        def work():
            folder = tempfile.mkdtemp()
            print(folder, flush=True)
            {end}

        tried(work, limit_s=1)
    """
    made = Path(_run(code)[0])
    assert made.is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_is_too_slow_leaves_its_contexts():
    lines = _run("""
        def work():
            try:
                time.sleep(60)
            finally:
                os.killpg(0, signal.SIGTERM)  # told twice: the end is not cut short
                time.sleep(0.1)
                print("closed", flush=True)

        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        tried(work, limit_s=1)
    """)
    assert lines == ["closed", "InputError 2 no result within 1 s; the file may loop for ever, or raise --limit-s"]
