"""Ways to a board that spoil or replace something on purpose, to see whether the harness notices."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from ..devices.child import ChildProcess
from ..devices.local import BOARD, LocalTransport, death

SLOW = 1.57  # as whole stretches were seen to be on a shared machine
FAST_S, SLOW_S = 1.5, 1.0  # mean time in each state: a comparison of some ten seconds sees both
_IMPATIENT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("board", sys.argv[1])
board = importlib.util.module_from_spec(spec)
spec.loader.exec_module(board)
board.Server.rest = lambda self: None
board.main()
"""


class Impatient(LocalTransport):
    """Turns end while the pool of threads still spins."""

    def launch(self) -> ChildProcess:
        """A board process that does not wait."""
        return ChildProcess([sys.executable, "-I", "-c", _IMPATIENT, str(BOARD)], death)


class Replayed(LocalTransport):
    """The machine has two speeds and changes between them at random times: samples are what they were, or longer."""

    def __init__(self, seed: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._random, self._clock = random.Random(seed), clock
        self._is_slow, self._until = False, clock() + self._random.expovariate(1 / FAST_S)

    def launch(self) -> Any:
        """A board process on the machine as it is."""
        return _Slowed(super().launch(), self._factor)

    def _factor(self) -> float:
        while self._clock() > self._until:
            self._is_slow = not self._is_slow
            self._until += self._random.expovariate(1 / (SLOW_S if self._is_slow else FAST_S))
        return SLOW if self._is_slow else 1.0


class Wrapped:
    """A process whose questions or answers somebody looks at on their way."""

    def __init__(self, process: ChildProcess) -> None:
        self._process = process

    def __enter__(self) -> Self:
        self._process.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.__exit__()

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """The board's answer."""
        return self._process.ask(request, limit_s)


class _Slowed(Wrapped):
    def __init__(self, process: ChildProcess, factor: Callable[[], float]) -> None:
        super().__init__(process)
        self._factor = factor

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """The board's answer, its block slower or not."""
        factor = self._factor()
        answer = super().ask(request, limit_s)
        if "samples_s" in answer:
            answer["samples_s"] = [factor * sample for sample in answer["samples_s"]]
        return answer


class Bare(LocalTransport):
    """The file of this name, or every model, is timed by a plain loop, all others by the harness."""

    def __init__(self, name: str | None = None) -> None:
        self._name = name

    def launch(self) -> Any:
        """A process that becomes the one or the other when it is told its model."""
        return _Undecided(self._name)


class _Undecided:
    def __init__(self, name: str | None) -> None:
        self._process: ChildProcess | None = None
        self._name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.__exit__()

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Start what the model asks for, and ask it."""
        if self._process is None:
            is_bare = "model" in request and self._name in (None, Path(request["model"]).name)
            script = Path(__file__).with_name("bare.py") if is_bare else BOARD
            self._process = ChildProcess([sys.executable, "-I", str(script)], death)
        return self._process.ask(request, limit_s)
