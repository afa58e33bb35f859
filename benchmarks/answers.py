"""Rows of docs/results/choosing.jsonl: an answer is measured once, and written as soon as it is known."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ..records import ChoosingRow
from .rows import read, write

HARNESS = "1"  # raise it when what is measured, or how, changes: older rows then no longer count


@dataclass(frozen=True)
class Found:
    """Figures by name, and what is to be said of them."""

    figures: Mapping[str, float]
    note: str = ""


@dataclass
class Answers:
    """A file of rows, as far as they are of this machine, so many threads and this seed."""

    results: Path
    machine: str
    threads: int
    seed: int
    rows: list[ChoosingRow] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = read(self.results, ChoosingRow)

    def known(self, what: str, network: str, details: Sequence[object]) -> ChoosingRow | None:
        """The row of a measurement, where it is there."""
        key = (self.machine, self.seed, self._hash(what, network, details))
        return next((row for row in self.rows if (row.machine, row.seed, row.config_hash) == key), None)

    def once(self, what: str, network: str, details: Sequence[object], measured: Callable[[], Found]) -> ChoosingRow:
        """The row that is there, or a new one. `details` are all that decides what is measured, and how."""
        row = self.known(what, network, details)
        if row is not None:
            return row
        began, started_at = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
        found = measured()
        row = ChoosingRow(
            what=what,
            network=network,
            threads=self.threads,
            config_hash=self._hash(what, network, details),
            seed=self.seed,
            machine=self.machine,
            figures=dict(found.figures),
            note=found.note,
            took_s=time.monotonic() - began,
            started_at=started_at,
        )
        self.rows.append(row)
        write(self.results, self.rows)
        return row

    def _hash(self, what: str, network: str, details: Sequence[object]) -> str:
        """Twelve hex digits."""
        facts = json.dumps([HARNESS, what, network, self.threads, *details], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:12]


def markdown(rows: Sequence[ChoosingRow]) -> str:
    """A table for each question: a line a row, a column for each figure that any has."""
    kinds = dict.fromkeys(row.what for row in rows)
    return "\n\n".join(_table(what, [row for row in rows if row.what == what]) for what in kinds)


def _table(what: str, rows: Sequence[ChoosingRow]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    columns = ["network", "threads", "seed", *names, "note"]
    lines = [f"## {what}", "", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for row in rows:
        figures = [f"{row.figures[name]:.4g}" if name in row.figures else "" for name in names]
        lines.append(f"| {' | '.join([row.network, str(row.threads), str(row.seed), *figures, row.note])} |")
    return "\n".join(lines)
