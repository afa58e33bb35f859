"""The transport to this machine: board.py in a fresh, isolated process that does not outlive us."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from ..errors import DeviceError
from .child import PATIENCE_S, ChildProcess, killed, last_line

BOARD = Path(__file__).with_name("board.py")


class LocalTransport:
    """Starts board processes with this interpreter."""

    def launch(self) -> ChildProcess:
        """Start board.py; leaving the process's context ends it."""
        return ChildProcess([sys.executable, "-I", str(BOARD)], death)

    def start(self, program: Path, *arguments: str) -> ChildProcess:
        """Start a program of ours, which ends by itself when the process's context is left."""
        return ChildProcess([sys.executable, "-I", str(program), *arguments], death, PATIENCE_S)

    def place(self, path: Path) -> str:
        """Where the file is."""
        return str(path.resolve())


def death(code: int, said: str) -> DeviceError:
    """Why a board process ended: its exit status, negative for a signal, and the last line it wrote to stderr."""
    remedy = "check free memory and the onnxruntime installation"
    line = last_line(said)
    words = f", its last line: {line}" if line else ""
    if code < 0:
        return DeviceError(f"the board process {killed(signal.Signals(-code).name, remedy, words)}")
    return DeviceError(f"the board process ended with status {code}{words}; {remedy}")
