"""The transport to this machine: board.py in a fresh, isolated process that does not outlive us."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from ..errors import DeviceError
from .child import ChildProcess, last_line

BOARD = Path(__file__).with_name("board.py")
_PATIENCE_S = 3.0


class LocalTransport:
    """Starts board processes with this interpreter."""

    def launch(self) -> ChildProcess:
        """Start board.py; leaving the process's context ends it."""
        return ChildProcess([sys.executable, "-I", str(BOARD)], death)

    def start(self, program: Path, *arguments: str) -> ChildProcess:
        """Start a program of ours, which ends by itself when the process's context is left."""
        return ChildProcess([sys.executable, "-I", str(program), *arguments], death, _PATIENCE_S)

    def place(self, path: Path) -> str:
        """Where the file is."""
        return str(path.resolve())


def death(code: int, said: str) -> DeviceError:
    """Why a board process ended: its exit status, negative for a signal, and the last line it wrote to stderr."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    line = last_line(said)
    words = f", its last line: {line}" if line else ""
    return DeviceError(f"the board process {how}{words}; check free memory and the onnxruntime installation")
