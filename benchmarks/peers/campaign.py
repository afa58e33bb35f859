"""All of it for one network, stage after stage: what has its row and its file is not made again.

The same walk lists the points for `plan`, makes them for `run`, and finds them again for `time`: which ones there are
follows from the rows of those before.
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from ...errors import CheckFailed, DeviceError
from ...files import locked
from ...records import PeerRow
from ...runtime.turns import Options
from ...terminal import bars
from ..answers import Answers, Found
from ..command import stopwatch_here
from ..rows import read, write
from ..training import side_by_side
from .finalists import (
    BANDS,
    DROP,
    EPOCHS,
    ONE_BAND,
    QUICK_EPOCH,
    WEIGHTS,
    best,
    between,
    chosen,
    finalists,
    going_on,
    holding,
)
from .making import every_tool, grid_of, in_worker, scored
from .own import DENSE, INT8, NARROW, OURS, RANKFOLD, quantised
from .points import Point
from .subjects import SEED, Subject
from .timing import duel, in_pairs, roughly
from .toolchain import toolchain
from .tools import ModuleTool, Tool
from .words import ANSWERS, TOOLCHAIN, note_of, said

SECONDS_AN_IMAGE = {"resnet20": 3.5e-3, "dec3": 3e-3}  # of training the dense one, on one core, beside another
DISTILLING, SMALLER = 1.4, 0.7  # a step with the teacher beside it; a step of a smaller network
DENSE_EPOCHS = 25  # of Dec3
A_POINT_S, A_BUDGET_S, A_BATCH = 12.0, 120.0, 64
A_PAIR_S, PAIRS = 2.0, 12  # half of the pairs again by a bare loop


@dataclass
class Campaign:
    """One network with its rows. With `retry` what gave no network is tried again."""

    subject: Subject
    results: Path
    workers: int = 1
    until: float = float("inf")
    retry: bool = False
    rows: dict[str, PeerRow] = field(default_factory=dict)
    points: dict[str, Point] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = {row.config_hash: row for row in read(self.results, PeerRow)}

    @cached_property
    def tools(self) -> dict[str, Tool]:
        """By name."""
        return every_tool(self.subject, lambda *_: None)

    # --- the stages -----------------------------------------------------------------------------------------

    def walk(self, make: Callable[[Sequence[Point]], None], time_roughly: Callable[[], None]) -> None:
        """Grid, short contest, finalists, those that go on, those between, int8."""
        tools, self.points = self.tools, {}  # each stage goes by the points of those before
        make(self._known(grid_of(tools[DENSE], self.subject)))
        make(self._known([point for tool in tools.values() for point in grid_of(tool, self.subject)]))
        time_roughly()
        learners = [tool for tool in tools.values() if isinstance(tool, ModuleTool) and self.subject.is_scored]
        is_quick, (short, long), distilled = self.subject.places.quick, EPOCHS, WEIGHTS[0]
        first = QUICK_EPOCH if is_quick else short
        make(self._known([p for tool in learners for p in self._after(self.finalists(tool), first, distilled)]))
        if not is_quick:
            make(self._known([p for tool in learners for p in self._by_labels(tool, short)]))
            make(self._known([p for tool in learners for p in self._longer(tool, short, long)]))
            limit = self._held()
            make(self._known([p for tool in learners for p in self._between(tool, short, long, limit)]))
        make(self._known([p for tool in tools.values() for p in self._quantised(tool)]))

    def finalists(self, tool: Tool) -> list[Point]:
        """Of a tool's grid."""
        grid = {self._hash(point): point for point in grid_of(tool, self.subject)}
        rows = {key: self.rows[key] for key in grid if key in self.rows}
        return [grid[key] for key in finalists(rows, self._bands)]

    @property
    def _bands(self) -> Sequence[tuple[float, float]]:
        return BANDS if self.subject.is_scored and not self.subject.places.quick else ONE_BAND

    @staticmethod
    def _after(points: Iterable[Point], epochs: float, weight: float) -> list[Point]:
        return [Point(point.setting, epochs, weight) for point in points]

    def _by_labels(self, tool: Tool, epochs: float) -> list[Point]:
        """A tool's best after the short training, from labels alone."""
        learned = self._learned(tool, epochs)
        key = best(learned, self.dense.validation_accuracy or 0.0)
        return [] if key is None else self._after([self.points[key]], epochs, WEIGHTS[1])

    def _longer(self, tool: Tool, short: float, long: float) -> list[Point]:
        """Those that go on, each as it learned better."""
        keys = going_on(self._learned(tool, short), self.dense.validation_accuracy or 0.0)
        return [Point(self.points[key].setting, long, self.points[key].weight) for key in keys]

    def _held(self) -> float:
        """The share of time of the fastest network in float, of any tool, that loses little enough so far."""
        found = [self.rows[key] for key, point in self.points.items() if point.int8 is None and key in self.rows]
        return holding((row for row in found if row.precision == "fp32"), self.dense.validation_accuracy or 0.0)

    def _between(self, tool: Tool, short: float, long: float, limit: float) -> list[Point]:
        """Settings nobody knows about yet, as the tool's best one learned better."""
        key = best(self._learned(tool, short), self.dense.validation_accuracy or 0.0)
        if key is None:
            return []
        grid = self._rows_of(tool, lambda point: point.weight is None and point.int8 is None)
        learned = self._rows_of(tool, lambda point: point.weight is not None and point.int8 is None).values()
        weight = self.points[key].weight
        return [Point(self.points[one].setting, long, weight) for one in between(grid, learned, limit)]

    def _learned(self, tool: Tool, epochs: float) -> dict[str, PeerRow]:
        return self._rows_of(tool, lambda point: point.epochs == epochs and point.int8 is None)

    def _quantised(self, tool: Tool) -> list[Point]:
        """A tool's best network, its fastest that loses little enough, and its most accurate one: ours by our own
        setting, others by the one of ONNX Runtime's that costs the dense one least.
        """
        if tool.name in (DENSE, INT8):
            return []
        int8 = {key: row for key, row in self._rows_of_name(INT8, lambda _: True).items() if row.failed is None}
        there = self._rows_of(tool, lambda point: point.int8 is None)
        if not self.subject.is_scored:
            there = {self._hash(point): self.row(point) for point in self.finalists(tool)}
        there = {key: row for key, row in there.items() if row.failed is None and row.precision == "fp32"}
        if not int8 or not there:
            return []
        least = self.points[max(int8, key=lambda key: int8[key].validation_accuracy or 0.0)].setting
        how = quantised() if tool.name in OURS else least
        dense = self.dense.validation_accuracy or 0.0
        accurate = max(there, key=lambda key: there[key].validation_accuracy or 0.0)
        keys = dict.fromkeys(key for key in (best(there, dense), best(there, dense, DROP), accurate) if key is not None)
        return [Point(p.setting, p.epochs, p.weight, how) for p in (self.points[key] for key in keys)]

    # --- rows -----------------------------------------------------------------------------------------------

    @property
    def dense(self) -> PeerRow:
        """The network that all came from. Raises CheckFailed where it has not been made."""
        row = next(iter(self._rows_of_name(DENSE, lambda _: True).values()), None)
        if row is None or row.failed:
            why = row.failed if row else "found none; run it first"
            raise CheckFailed(f"{self.subject.name}: expected a row of the dense network: {why}")
        return row

    def row(self, point: Point) -> PeerRow:
        """Of a point that has been made."""
        return self.rows[self._hash(point)]

    def add(self, row: PeerRow) -> None:
        """Put a row in the place of an older one of the same name, and write all."""
        older = [key for key, one in self.rows.items() if _name(one) == _name(row) and key != row.config_hash]
        self.rows = {key: one for key, one in self.rows.items() if key not in older} | {row.config_hash: row}
        write(self.results, self.rows.values())

    def _hash(self, point: Point) -> str:
        return point.config_hash(self.subject)

    def _known(self, points: Sequence[Point]) -> list[Point]:
        self.points |= {self._hash(point): point for point in points}
        return list(points)

    def _rows_of(self, tool: Tool, wanted: Callable[[Point], bool]) -> dict[str, PeerRow]:
        return self._rows_of_name(tool.name, wanted)

    def _rows_of_name(self, name: str, wanted: Callable[[Point], bool]) -> dict[str, PeerRow]:
        """Of points of this walk that have rows."""
        return {
            key: self.rows[key]
            for key, point in self.points.items()
            if point.setting.tool == name and wanted(point) and key in self.rows
        }

    # --- making ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All that is missing up to `until`, after any other run in the same folder. Raises CheckFailed where that came
        too early.
        """
        with locked(self.subject.folder / "lock"):
            self.prepare()
            self.walk(self.make, self.time_roughly)

    def prepare(self) -> None:
        """The dense network, its file and the calibration images; what a killed process left half done goes."""
        for leftover in (self.subject.folder / "points").glob(".*.part"):
            shutil.rmtree(leftover)
        with bars() as new_bar:
            bar = new_bar(f"{self.subject.name}: training the dense network")
            self.subject.dense(lambda now: bar.show(now.step, now.steps, now.left_s, f"loss {now.loss:.3f}"))
        self.subject.source()
        self.subject.calibration()

    def missing(self, points: Sequence[Point]) -> list[Point]:
        """Those without a row, or without the file that their row is about."""
        return [
            point
            for point in points
            if (row := self.rows.get(self._hash(point))) is None
            or (self.retry if row.failed else not point.file(self.subject).exists())
        ]

    def make(self, points: Sequence[Point]) -> None:
        """Rows as they are known; those that measure come first, one at a time."""
        todo = self.missing(points)
        for point in todo:
            if point.is_alone:
                self._make_together([point])
        together = [point for point in todo if not point.is_alone]
        if together:
            self._make_together(together)

    def _make_together(self, todo: Sequence[Point]) -> None:
        work = partial(in_worker, self.subject.places, self.subject.name)
        folders, done = [point.folder(self.subject) for point in todo], 0
        try:
            for future in side_by_side(work, todo, folders, min(self.workers, len(todo)), self.until):
                row, done = future.result(), done + 1
                self.add(row.model_copy(update={"roughly": self._roughly_before(row)}))
                print(said(row), flush=True)
        except BrokenProcessPool as error:
            raise DeviceError("a process was killed; free memory, then give the same command") from error
        if done < len(todo):
            raise CheckFailed(f"{len(todo) - done} points are left after the time given; the same command goes on")

    def _roughly_before(self, row: PeerRow) -> float | None:
        """Learning changes no shapes: the time of the setting at 0 epochs."""
        point = self.points[row.config_hash]
        before = self.rows.get(self._hash(point.beginning))
        return before.roughly if before is not None and point.int8 is None else None

    def time_roughly(self) -> None:
        """A short contest of those at 0 epochs that have not been in one."""
        dense = self.dense
        todo = [
            (row, self.points[key].file(self.subject))
            for key, row in self.rows.items()
            if key in self.points and row.failed is None and row.roughly is None and not row.epochs
        ]
        files = [file for row, file in todo if row.tool != DENSE]
        with bars() as new_bar:
            bar, began = new_bar(f"{self.subject.name}: a short contest"), time.monotonic()

            def report(number: int, total: int) -> None:
                left_s = (time.monotonic() - began) / number * (total - number) if number else None
                bar.show(number, total, left_s, "")

            whole = self.points[dense.config_hash].file(self.subject)
            found = roughly(stopwatch_here(), whole, files, report) | {whole: 1.0}
        for row, file in todo:
            self.add(row.model_copy(update={"roughly": found[file]}))

    # --- timing ---------------------------------------------------------------------------------------------

    def measure(self, options: Options) -> None:
        """Launch pairs of all that count, then those that are chosen on the test images and against one another."""
        self.walk(self._require, lambda: None)
        self._time(options)
        assert self.dense.time is not None, "timed just now"
        answers = Answers(self.results.with_suffix(ANSWERS), self.dense.time.machine, options.threads, SEED)
        answers.once(TOOLCHAIN, self.subject.name, [options.pairs], lambda: toolchain(self.subject, options))
        if self.subject.is_scored:
            self._test_and_compare(options, answers)

    def _require(self, points: Sequence[Point]) -> None:
        missing = self.missing(points)
        if missing:
            where = f"{missing[0].setting.tool}, {missing[0].setting.name}"
            raise CheckFailed(f"{self.subject.name}: {len(missing)} points have not been made ({where}); run it first")

    def counting(self) -> dict[tuple[str, str, str], list[PeerRow]]:
        """What is timed: finalists, what came of them, and what was quantised, by tool, setting and class.

        Those that learned longest come last: they share their shapes, and so their time.
        """
        first = {self._hash(point) for tool in self.tools.values() for point in self.finalists(tool)}
        first |= {self._hash(point.in_float) for point in self.points.values() if point.int8 is not None}
        found: dict[tuple[str, str, str], list[PeerRow]] = defaultdict(list)
        for key, point in self.points.items():
            row = self.rows[key]
            if row.failed is None and row.tool != DENSE and (key in first or point.weight is not None or point.int8):
                found[row.tool, row.setting, row.precision].append(row)
        return {name: sorted(rows, key=lambda row: row.epochs) for name, rows in found.items()}

    def _time(self, options: Options) -> None:
        groups = {f"n{number}": rows for number, rows in enumerate(self.counting().values())}
        dense = self.dense
        if dense.time is not None and all(row.time is not None for rows in groups.values() for row in rows):
            return
        files = {name: self._file(rows[-1]) for name, rows in groups.items()}
        found = in_pairs(self.subject.folder, self._file(dense), files, options)
        for name, rows in {"dense": [dense], **groups}.items():
            for row in rows:
                self.add(row.model_copy(update={"time": found[name]}))

    def _file(self, row: PeerRow) -> Path:
        return self.points[row.config_hash].file(self.subject)

    def _test_and_compare(self, options: Options, answers: Answers) -> None:
        """Each class's fastest of ours and of the peers, if they lose little enough."""
        mine = [self.rows[key] for key in self.points]
        picked = chosen(mine, self.dense)
        for row in (self.dense, *(row for row in picked.values() if row is not None)):
            if row.test_accuracy is None:
                score = scored(self._file(row), self.subject, "test")
                told = {"test_accuracy": score.value, "test_low": score.low, "test_high": score.high}
                self.add(row.model_copy(update={**told, "test_n": score.n}))
        for kind in ("fp32", "int8"):
            ours, peer = picked[RANKFOLD, kind], picked["peer", kind]
            if ours is None or peer is None:
                continue

            def fought(ours: PeerRow = ours, peer: PeerRow = peer) -> Found:
                harness, bare = duel(self.subject.folder, self._file(peer), self._file(ours), options)
                figures = {"ratio": harness.ratio, "low": harness.low, "high": harness.high}
                figures |= {"bare": bare.ratio, "bare low": bare.low, "bare high": bare.high}
                return Found(figures, note_of(ours, peer))

            details = [ours.config_hash, peer.config_hash, options.pairs]
            answers.once(kind, self.subject.name, details, fought)

    # --- how long it takes ----------------------------------------------------------------------------------

    def estimate(self) -> Iterator[Stage]:
        """All that there is to do, if nothing is there yet; not of a quick run."""
        subject, tools = self.subject, self.tools
        grid = [point.setting for tool in tools.values() for point in grid_of(tool, subject)]
        budgets, settings = ([one for one in grid if one.is_alone is alone] for alone in (True, False))
        yield Stage("budgets searched by rankfold", len(budgets), len(budgets) * A_BUDGET_S, is_alone=True)
        yield Stage("other settings", len(settings), len(settings) * A_POINT_S)
        learners = sum(isinstance(tool, ModuleTool) and tool.missing is None for tool in tools.values())
        finals = len(self._bands) * learners
        if subject.is_scored:
            image_s = SECONDS_AN_IMAGE[subject.name]
            epoch_s = image_s * len(subject.data.train)
            steps = [setting.arguments["steps"] for setting in settings if "steps" in setting.arguments]
            yield Stage("trainings that are part of a tool", len(steps), sum(steps) * A_BATCH * image_s)
            anew = sum(setting.tool in (NARROW, *OURS) for setting in settings) if subject.is_taught else 0
            yield Stage("small networks trained from the beginning", anew, anew * DENSE_EPOCHS * epoch_s * SMALLER)
            short, long = (epochs * epoch_s * SMALLER for epochs in EPOCHS)
            yield Stage("trainings of finalists", finals + learners, short * (finals * DISTILLING + learners))
            longer = 2 * learners  # of one best, and up to MORE between: not all tools have those
            yield Stage("longer trainings", longer, longer * long * DISTILLING)
        quantised = (3 if subject.is_scored else 1) * learners
        yield Stage("networks in int8", quantised, quantised * A_POINT_S)
        timed = finals + quantised
        yield Stage("networks in launch pairs", timed, timed * PAIRS * A_PAIR_S, is_alone=True)


@dataclass(frozen=True)
class Stage:
    """Something to do: how many, and seconds of a slow core; `is_alone`: nothing else runs meanwhile."""

    what: str
    count: int
    seconds: float
    is_alone: bool = False


def _name(row: PeerRow) -> tuple[object, ...]:
    return row.network, row.tool, row.setting, row.quick, row.epochs, row.weight, row.precision
