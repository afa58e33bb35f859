"""Commands in processes of their own, to be killed: forked from one that has imported torch, so they start at once."""

from __future__ import annotations

import os
import runpy
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rankfold.benchmarks.training import forking

_PATIENCE_S = 300.0  # until a child has done something, or has ended; a slow machine imports torch for half a minute


class Child:
    """`rankfold WORDS`, started in a folder."""

    def __init__(self, words: list[str], folder: Path, said: Path) -> None:
        self._said = {name: said / name for name in ("out", "err")}
        given = (folder, *self._said.values(), words)
        script = str(Path(__file__).with_name("child.py"))
        self._process = forking().Process(target=runpy.run_path, args=(script, {"GIVEN": given}))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Until it has come to what is to be interrupted. It must not end before."""
        until = time.monotonic() + _PATIENCE_S
        while not ready():
            assert self._process.is_alive(), self.said("err")
            assert time.monotonic() < until, "it did not get there"
            time.sleep(0.01)

    def stop(self, number: signal.Signals) -> int:
        """Send it a signal and wait."""
        if self._process.is_alive():
            os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> int:
        """Its exit code; -N if signal N ended it."""
        self._process.join(_PATIENCE_S)
        assert self._process.exitcode is not None, "it does not end"
        return self._process.exitcode

    def said(self, stream: str) -> str:
        """What it wrote to `out` or `err`."""
        return self._said[stream].read_text()


@contextmanager
def started(words: list[str], folder: Path) -> Iterator[Child]:
    """Start a command; it is killed where it still runs at the end."""
    with tempfile.TemporaryDirectory() as said:
        child = Child(words, folder, Path(said))
        try:
            yield child
        finally:
            child.stop(signal.SIGKILL)
