"""A child process that answers JSON lines over its pipes, whatever the command: Python here, or ssh to a board."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import IO, Any, Self

from ..errors import DeviceError

Judge = Callable[[int, str], DeviceError]

PATIENCE_S = 3.0  # for a process to end by itself: two must not be alive when the next is timed
_MAX_ANSWER_BYTES = 64 << 20  # a million samples in JSON are 20 MB
_EXIT_LIMIT_S = 5.0
_STDERR_TAIL_BYTES = 4096
_RUNNING: set[subprocess.Popen[Any]] = set()


def started(command: Sequence[str], **streams: Any) -> subprocess.Popen[Any]:
    """A child that leads its own session, so Ctrl-C reaches us first and we end it; `forget` it when it has ended."""
    child = subprocess.Popen(command, start_new_session=True, **streams)
    _RUNNING.add(child)
    return child


def forget(child: subprocess.Popen[Any]) -> None:
    """It has ended."""
    _RUNNING.discard(child)


def end_all() -> None:
    """Ask every child to end, whichever thread waits for it, and so learns that it has."""
    for child in tuple(_RUNNING):
        child.terminate()


class ChildProcess:
    """Speaks JSON lines with a child.

    `judge(status, last words)` says what a death means; the status is negative for a signal. When the context is left
    the child has `patience_s` to end by itself, now that no request can come any more.
    """

    def __init__(self, command: Sequence[str], judge: Judge, patience_s: float = 0.0) -> None:
        self._judge, self._patience_s = judge, patience_s
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        try:
            self._child = started(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                bufsize=0,
                env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
            )
        except OSError as error:
            self._stderr.close()
            raise DeviceError(f"cannot start {command[0]}: {error.strerror}; check the installation") from error
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._requests, self._answers = self._child.stdin, self._child.stdout

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    @property
    def is_alive(self) -> bool:
        """Whether the child has not ended yet."""
        return self._child.poll() is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.close()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(self._patience_s)
        finally:
            self._child.kill()
            self._child.wait()
            forget(self._child)
            self._answers.close()
            self._stderr.close()

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Send one request and return its answer; DeviceError when the child dies, dawdles or babbles."""
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError as error:
            raise self._death() from error
        line = self._read_line(time.monotonic() + limit_s, limit_s)
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DeviceError(f"the board answered no JSON but {line[:60]!r}; run again") from error
        if not isinstance(answer, dict):
            raise DeviceError(f"the board answered {type(answer).__name__}, expected an object; run again")
        return answer

    def _read_line(self, deadline: float, limit_s: float) -> bytes:
        """One answer. There is never more than one under way, so nothing may follow its newline."""
        line = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise DeviceError(f"no answer from the board within {limit_s:g} s; is the model too slow for it?")
                part = os.read(self._answers.fileno(), 1 << 16)
                if not part:
                    raise self._death()
                line += part
                if len(line) > _MAX_ANSWER_BYTES:
                    raise DeviceError(f"the board's answer exceeds {_MAX_ANSWER_BYTES >> 20} MiB; run again")
        return bytes(line)

    def _death(self) -> DeviceError:
        """Why the child is gone: its exit status or signal, and what it wrote to stderr at last."""
        try:
            code = self._child.wait(_EXIT_LIMIT_S)
        except subprocess.TimeoutExpired:
            return DeviceError("the board process closed its output but still runs; run again")
        return self._judge(code, tail(self._stderr))


def killed(by: str, else_try: str, words: str = "") -> str:
    """What a death by this signal means, and what to do."""
    if by == "SIGILL":
        meaning = ": its processor lacks an instruction that numpy or onnxruntime has, as wheels for another one do"
        return f"was killed by {by}{meaning}; install another version there"
    return f"was killed by {by}{words}; {else_try}"


def tail(file: IO[bytes]) -> str:
    """The end of what was written to a file."""
    file.seek(max(0, os.fstat(file.fileno()).st_size - _STDERR_TAIL_BYTES))
    return file.read().decode(errors="replace")


def last_line(text: str) -> str:
    """The last line that is not blank, fit to be shown."""
    last = next((line for line in reversed(text.split("\n")) if line.strip()), "")
    return "".join(c if c.isprintable() else " " for c in last)[:300].rstrip()
