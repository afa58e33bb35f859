"""The latency table: how long small models take, as a multiple of one another, kept from one call to the next.

It times opaque bytes. Models of one contest are alive in one process and take turns of a single run each, in random
order: all meet the same weather. A part of a network finds the caches as others left them, as it does in the network;
a whole one as it left them itself, as when it is served. Stored is the ratio to the contest's reference, under all that
decides how fast a model runs; seconds of two days are never mixed.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

import numpy as np

from ..devices.counting import CountingTransport
from ..devices.qemu import QemuTransport
from ..devices.transport import BoardProcess, Transport, contest
from ..errors import InputError
from ..files import cache_folder
from ..records import CostKind, Facts
from .serving import persistently, told
from .stats import most_frequent, undisturbed
from .turns import Options, choose_cores

LAUNCHES = 2  # processes a contest is held in: whole launches differ
ROUNDS, SECONDS = 800, 6.0  # of a contest, whichever comes first; three rounds a launch at least
WHOLE_SECONDS = 10.0  # for whole networks, each of whose runs comes after two that are not timed
WHOLE_ROUNDS = 48  # of a launch for these, where it is known how long a run takes: with 5 a ratio is 5 % off, not 0.5
_NEAR = 16  # rounds within which runs are compared: the machine changes from one second to the next
_PARTS = 5  # of a launch's rounds, whose spread says how sure a ratio is
_BUSY_S = 60.0  # to wait for another process that writes
_SCHEMA = """
CREATE TABLE IF NOT EXISTS setting (hash TEXT PRIMARY KEY, facts TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS timed (
    setting TEXT NOT NULL REFERENCES setting (hash), reference TEXT NOT NULL, model TEXT NOT NULL, ratio REAL NOT NULL,
    error REAL NOT NULL, reference_s REAL NOT NULL, rounds INTEGER NOT NULL, measured_at TEXT NOT NULL,
    PRIMARY KEY (setting, reference, model)
);
"""


@dataclass(frozen=True)
class Timed:
    """Time of a model / time of its reference, the standard error of the ratio's logarithm within launches, and the
    reference's seconds in that contest; each launch's ratio too, where the contest was held just now.
    """

    ratio: float
    error: float
    reference_s: float
    rounds: int
    launches: tuple[float, ...] = ()


@dataclass(frozen=True)
class Contest:
    """Serialised models to be timed against `reference`, which is one of them."""

    reference: bytes
    models: Sequence[bytes]


def key_of(model: bytes) -> str:
    """What a model is called in the table."""
    return hashlib.sha256(model).hexdigest()[:32]


def setting_of(facts: Facts, options: Options) -> dict[str, object]:
    """All that decides how fast a model runs there: what must agree before a stored ratio is used."""
    cores = choose_cores(options, facts)
    found: dict[str, object] = {key: getattr(facts, key) for key in Facts.DECISIVE}
    cluster = [index for index, members in enumerate(facts.clusters) if set(members) & set(cores)]
    found |= {"threads": options.threads, "cores": len(cores), "clusters": cluster, "provider": options.provider}
    return found | {"session_config": dict(sorted(options.session_config.items()))}


class Table:
    """A SQLite file. Several processes may read and write it at the same time."""

    def __init__(self, path: Path, setting: Mapping[str, object]) -> None:
        self.path, self._told = path, setting
        text = json.dumps(setting, sort_keys=True)
        self._setting = hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}; name another file") from error
        with self._open() as connection:
            connection.executescript(_SCHEMA)
            connection.execute("INSERT OR IGNORE INTO setting VALUES (?, ?)", (self._setting, text))

    def beside(self, what: Mapping[str, object]) -> Table:
        """Of the same file, for a setting that differs in this."""
        return Table(self.path, {**self._told, **what})

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction; InputError where the file is no table."""
        try:
            with closing(sqlite3.connect(self.path, timeout=_BUSY_S)) as connection, connection:
                connection.execute("PRAGMA journal_mode = WAL")
                yield connection
        except sqlite3.Error as error:
            raise InputError(f"{self.path}: expected a latency table, found {error}; name another file") from error

    def known(self, reference: bytes) -> dict[str, Timed]:
        """What has been timed against a reference, by the models' keys."""
        columns = "SELECT model, ratio, error, reference_s, rounds FROM timed WHERE setting = ? AND reference = ?"
        with self._open() as connection:
            rows = connection.execute(columns, (self._setting, key_of(reference))).fetchall()
        return {model: Timed(*values) for model, *values in rows}

    def add(self, reference: bytes, found: Mapping[str, Timed]) -> None:
        """Store ratios at once; a newer one replaces the older."""
        now, against = datetime.now(UTC).isoformat(timespec="seconds"), key_of(reference)
        rows = [
            (self._setting, against, model, one.ratio, one.error, one.reference_s, one.rounds, now)
            for model, one in found.items()
        ]
        with self._open() as connection:
            connection.executemany("INSERT OR REPLACE INTO timed VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def count(self) -> int:
        """Ratios stored for this setting."""
        with self._open() as connection:
            return connection.execute("SELECT COUNT(*) FROM timed WHERE setting = ?", (self._setting,)).fetchone()[0]


def table_path() -> Path:
    """Where the table lies by default."""
    return cache_folder() / "latency.sqlite"


@dataclass(frozen=True)
class Stopwatch:
    """A device on which models are timed against one another, and the table of what it has said before.

    A model is known by its bytes, and timed as `write` makes it.
    """

    transport: Transport
    facts: Facts
    options: Options
    table: Table
    write: Callable[[bytes], bytes] = bytes

    def writing(self, name: str, write: Callable[[bytes], bytes]) -> Stopwatch:
        """One that times models as `write` makes them; in the table they are kept apart by this name."""
        return replace(self, table=self.table.beside({"written": name}), write=write)

    @property
    def cost(self) -> CostKind:
        """What its ratios are of. Instructions stand in the table as nanoseconds, under an emulated device."""
        return "instructions" if isinstance(self.transport, CountingTransport) else "time"

    def fill(self, contests: Sequence[Contest], report: Callable[[int, int], None] = lambda done, total: None) -> int:
        """Time what the table lacks, each contest stored as soon as it is over; returns how many models.

        A contest is held again with its reference and what is missing. `report(done, total)` counts models.
        """
        todo = [(one.reference, self._missing(one)) for one in contests]
        todo = [(reference, missing) for reference, missing in todo if missing]
        if not todo:
            return 0

        def left() -> int:
            return sum(len(missing) for _, missing in todo)

        total = left()

        def go_on() -> None:
            with self._launched() as processes:
                while todo:
                    report(total - left(), total)
                    reference, missing = todo[0]
                    self.table.add(reference, self._held(processes, reference, missing, whole=False))
                    todo.pop(0)

        persistently(go_on)
        report(total, total)
        return total

    def _missing(self, one: Contest) -> list[bytes]:
        known = self.table.known(one.reference)
        found = {key_of(model): model for model in one.models if model != one.reference and key_of(model) not in known}
        return list(found.values())

    def timed(
        self,
        reference: bytes,
        models: Sequence[bytes],
        *,
        whole: bool = False,
        launches: int = LAUNCHES,
        run_s: float = 0.0,
    ) -> dict[str, Timed]:
        """Hold one contest, now, whatever the table says; ratios by the models' keys.

        `whole` networks run as when they are served, on the inputs, or their shapes, that the options name; parts of
        one have their own. Where a run takes about `run_s` seconds, it lasts as long as enough rounds do.
        """

        def hold() -> dict[str, Timed]:
            with self._launched(launches) as processes:
                return self._held(processes, reference, models, whole=whole, run_s=run_s)

        return persistently(hold)

    @contextmanager
    def _launched(self, count: int = LAUNCHES) -> Iterator[list[BoardProcess]]:
        """Fresh processes, each to hold every contest once: whole launches differ."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.transport.launch()) for _ in range(count)]

    def _held(
        self,
        processes: Sequence[BoardProcess],
        reference: bytes,
        models: Sequence[bytes],
        *,
        whole: bool,
        run_s: float = 0.0,
    ) -> dict[str, Timed]:
        options = self.options if whole else replace(self.options, shapes={}, inputs=None)
        cores = choose_cores(options, self.facts)
        names = [key_of(reference), *map(key_of, models)]
        launches: list[np.ndarray] = []
        with tempfile.TemporaryDirectory(prefix="rankfold-") as folder:
            files = [Path(folder) / f"{name}.onnx" for name in names]
            for file, model in zip(files, (reference, *models), strict=True):
                file.write_bytes(self.write(model))
            request = {"models": list(map(self.transport.place, files)), **told(self.transport, options, cores)}
            seconds = max((WHOLE_SECONDS if whole else SECONDS) / LAUNCHES, WHOLE_ROUNDS * len(names) * run_s)
            for launch, process in enumerate(processes):
                request |= {"seed": options.seed + launch, "alone": whole}
                samples = contest(process, request, ROUNDS // LAUNCHES, seconds)
                launches.append(np.log(np.asarray(samples)))
        reference_s = undisturbed(np.exp(np.concatenate([launch[0] for launch in launches])).tolist())
        return {
            name: _timed([(launch[0], launch[index]) for launch in launches], reference_s)
            for index, name in enumerate(names)
            if index
        }


def stopwatch(
    transport: Transport, facts: Facts, options: Options, path: Path | None = None, cost: CostKind = "time"
) -> Stopwatch:
    """A stopwatch with the table of `path`, or of `table_path()`; on an emulated device it counts instructions.

    Raises InputError where a device cannot say what is asked for.
    """
    if facts.emulated and cost == "time":
        raise InputError("an emulated device yields no times; plan by a proxy: compress --cost instructions on qemu-…")
    if cost == "instructions":
        if not isinstance(transport, QemuTransport):
            raise InputError(
                "--cost instructions: they are counted on qemu-… alone; name one, or go by a board's times"
            )
        transport = CountingTransport(transport)
    return Stopwatch(transport, facts, options, Table(path or table_path(), setting_of(facts, options)))


def _timed(launches: Sequence[tuple[np.ndarray, np.ndarray]], reference_s: float) -> Timed:
    """A model's ratio: the most frequent one between its runs and its reference's, launch by launch."""
    logs = [_log_ratio(mine, theirs) for theirs, mine in launches]
    parts = [
        _log_ratio(*part)
        for theirs, mine in launches
        for part in zip(*(np.array_split(times, _PARTS) for times in (mine, theirs)), strict=True)
        if len(part[0])
    ]
    error = float(np.std(parts, ddof=1)) / math.sqrt(len(parts)) if len(parts) > 1 else math.inf
    rounds = sum(len(mine) for mine, _ in launches)
    return Timed(math.exp(fmean(logs)), error, reference_s, rounds, tuple(map(math.exp, logs)))


def _log_ratio(mine: np.ndarray, theirs: np.ndarray) -> float:
    near = range(0, len(mine), _NEAR)
    return most_frequent(
        np.concatenate([np.subtract.outer(mine[k : k + _NEAR], theirs[k : k + _NEAR]).ravel() for k in near])
    )
