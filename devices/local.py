"""The transport to this machine: board.py in a fresh, isolated process that does not outlive us."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Self

from ..errors import DeviceError

BOARD = Path(__file__).with_name("board.py")
_MAX_ANSWER_BYTES = 64 << 20  # a million samples in JSON are 20 MB
_EXIT_LIMIT_S = 5.0
_STDERR_TAIL_BYTES = 4096


class LocalTransport:
    """Starts board processes with this interpreter."""

    def launch(self) -> LocalProcess:
        """Start board.py; leaving the process's context ends it."""
        return LocalProcess([sys.executable, "-I", str(BOARD)])


class LocalProcess:
    """A child that speaks JSON lines. It leads its own session, so Ctrl-C reaches us first and we end it."""

    def __init__(self, command: list[str]) -> None:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        try:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                bufsize=0,
                start_new_session=True,
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.wait()
        self._answers.close()
        self._stderr.close()
        self._requests.close()

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
        """Why the child is gone: its exit status or signal, and the last line it wrote to stderr."""
        try:
            code = self._child.wait(_EXIT_LIMIT_S)
        except subprocess.TimeoutExpired:
            return DeviceError("the board process closed its output but still runs; run again")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        said = f", its last line: {last}" if (last := self._last_stderr_line()) else ""
        return DeviceError(f"the board process {how}{said}; check free memory and the onnxruntime installation")

    def _last_stderr_line(self) -> str:
        size = os.fstat(self._stderr.fileno()).st_size
        self._stderr.seek(max(0, size - _STDERR_TAIL_BYTES))
        lines = self._stderr.read().decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        return "".join(c if c.isprintable() else " " for c in last)[:300]
