"""Run work on a stranger's file in a child process with bounds on memory and time.

The libraries that read and run ONNX graphs are C++: a damaged file can crash them, and a number in a good one can
ask for all memory or run for ever. A child that dies takes nothing with it, and its end is one line.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NoReturn

from .. import errors
from ..errors import CheckFailed, InputError, RankfoldError

LIMIT_S = 1800.0  # ResNet-50 takes seconds; half an hour is a hang
_GRACE_S = 5.0  # for a child to end what it began: processes on a board, a bar on the terminal
_LOOK_EVERY_S = 0.02
_MEMORY_SHARE = 0.8  # of what the machine has: the rest is for whoever else runs
_GIB = 1 << 30
# What Python code raises on data that contradicts itself; in the child it ends as one line, with its place.
_DEFECTS = (
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError, RuntimeError),
    *(RecursionError, NotImplementedError, ImportError, OSError),
)


def guarded(work: Callable[[], str], *, memory_bytes: int | None = None, limit_s: float = LIMIT_S) -> str:
    """The text that `work` returns, from a child with at most this much memory and time.

    Raises the RankfoldError that `work` raised; InputError when it outgrew a limit; CheckFailed when it crashed.
    However the child ends, its temporary files go. The caller must have no threads (the child is a fork).
    """
    with tempfile.TemporaryDirectory(prefix="rankfold-", ignore_cleanup_errors=True) as scratch:
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        text = None
        _hold_interrupts(signal.SIG_BLOCK)  # one right after the fork would leave a child that nobody ends
        child = os.fork()
        if child == 0:
            os.close(reading)
            _work_and_exit(work, writing, memory_bytes or default_memory_bytes(), scratch)
        try:
            _hold_interrupts(signal.SIG_UNBLOCK)
            os.close(writing)
            text = _read(reading, limit_s)
        finally:
            os.close(reading)
            status = _end(child, is_done=text is not None)
    if text is None:
        raise InputError(f"no result within {limit_s:g} s; the file may loop for ever, or raise --limit-s")
    return _judged(text, status)


def _hold_interrupts(how: int) -> None:
    signal.pthread_sigmask(how, {signal.SIGINT})


def default_memory_bytes() -> int:
    """Most of the machine's memory."""
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * _MEMORY_SHARE)


def _work_and_exit(work: Callable[[], str], writing: int, memory_bytes: int, scratch: str) -> NoReturn:
    """The child's whole life; it never returns into the parent's code."""
    try:
        signal.signal(signal.SIGINT, lambda *_: None)  # a terminal's Ctrl-C reaches both: the parent passes it on
        signal.signal(signal.SIGTERM, _interrupt)
        _hold_interrupts(signal.SIG_UNBLOCK)
        os.environ["TMPDIR"], tempfile.tempdir = scratch, None
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # C++ libraries print there before they die
        answer = _answer(work, memory_bytes)
        with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "w") as file:
            file.write(json.dumps(answer))
        sys.stdout.flush()
    finally:
        os._exit(0)


def _interrupt(*_: object) -> NoReturn:
    """Leave all contexts, as at Ctrl-C; once, for what they do at their end must not be cut short."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _answer(work: Callable[[], str], memory_bytes: int) -> dict[str, str]:
    try:
        return {"result": work()}
    except RankfoldError as error:
        return {"kind": type(error).__name__, "text": str(error)}
    except MemoryError:
        return {"kind": "InputError", "text": f"it needs more than {memory_bytes / _GIB:.1f} GiB of memory; {_REMEDY}"}
    except KeyboardInterrupt:
        return {"kind": "KeyboardInterrupt", "text": ""}
    except _DEFECTS as error:
        text = " ".join(str(error).split())[:160]
        return {"kind": "CheckFailed", "text": f"{type(error).__name__} in {_place(error)}: {text}; {_REPORT}"}


_REMEDY = "give smaller inputs or raise --memory-gb"
_REPORT = "nothing was written, please report the model"


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "unknown" if trace is None else f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"


def _read(descriptor: int, limit_s: float) -> str | None:
    """All that the child writes until it ends; None when the time is up."""
    deadline, parts = time.monotonic() + limit_s, []
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            part = os.read(descriptor, 1 << 16)
            if not part:
                return b"".join(parts).decode()
            parts.append(part)
    return None


def _end(child: int, *, is_done: bool) -> int:
    """How the child ended: the signal's number, 0 for none. One that is not done is told to end, and then killed.

    It is told at every look: Python notices a signal between its look at them and a system call only after that call,
    and the next one cuts the call short.
    """
    try:
        deadline = time.monotonic() + _GRACE_S
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and time.monotonic() < deadline:
            if not is_done:
                os.kill(child, signal.SIGTERM)
            time.sleep(_LOOK_EVERY_S)
    finally:
        os.kill(child, signal.SIGKILL)  # to one that has ended it does nothing
        _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def _judged(text: str, status: int) -> str:
    if not text:
        name = signal.Signals(status).name if status else "no answer"
        raise CheckFailed(f"the ONNX libraries crashed on this file ({name}); {_REPORT}")
    answer = json.loads(text)
    if "result" in answer:
        return answer["result"]
    if answer["kind"] == "KeyboardInterrupt":
        raise KeyboardInterrupt
    raise getattr(errors, answer["kind"], CheckFailed)(answer["text"])
