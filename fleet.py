"""Several devices at once: a thread and a row for each. What fails on one is told, and does not stop the others."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RankfoldError
from .files import require_writable
from .records import Card
from .stages import measured, named, reserved_device
from .terminal import Bar, bars

if TYPE_CHECKING:
    from .runtime.serving import Models
    from .runtime.turns import Options

_LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Outcome:
    """What became of a device: its record is at `path`, unless it failed."""

    device: str
    path: Path
    failure: RankfoldError | None = None


def measure_fleet(
    models: Sequence[Path], cards: Sequence[Card], *, output: Path, governor: str | None = None, **asked: Any
) -> list[Outcome]:
    """Measure the same files on all these devices at once: `bench.json` → `bench.pi4.json`, `bench.pi5.json`.

    What is wrong with models or options is told before anyone is reached. `asked` as for `measure_models`.
    """
    from .devices.child import end_all
    from .runtime.serving import source
    from .runtime.turns import Options, checked_pairs

    require_writable(output)
    sources, options = [source(name, path) for name, path in named(models)], Options(**asked)
    checked_pairs(options)
    stopping = threading.Event()
    with bars() as new_bar, ThreadPoolExecutor(len(cards)) as threads:
        jobs: list[Future[Outcome]] = []
        try:
            for card in cards:
                row = _Row(new_bar(card.name), stopping)
                jobs.append(threads.submit(_measured, sources, card, options, governor, row, output))
            wait(jobs)
        except KeyboardInterrupt:
            stopping.set()
            while wait(jobs, _LOOK_EVERY_S).not_done:
                end_all()
            raise
        return [job.result() for job in jobs]


class _Row:
    """A device's row. At Ctrl-C, which only the main thread gets, it raises the same in the device's."""

    def __init__(self, bar: Bar, stopping: threading.Event) -> None:
        self._bar, self._stopping = bar, stopping

    def show(self, done: int, total: int, left_s: float | None, text: str) -> None:
        """Advance to `done` of `total`."""
        if self._stopping.is_set():
            raise KeyboardInterrupt
        self._bar.show(done, total, left_s, text)


def _measured(sources: Models, card: Card, options: Options, governor: str | None, row: _Row, output: Path) -> Outcome:
    path = output.with_name(f"{output.stem}.{card.name}{output.suffix}")
    try:
        with reserved_device(card, lambda _: row, governor) as transport:
            measured(sources, transport, card, options, lambda _: row, card.name, path)
    except RankfoldError as error:
        row.show(0, 1, None, f"failed: {error}")
        return Outcome(card.name, path, error)
    return Outcome(card.name, path)
