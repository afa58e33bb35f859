"""Which step collapses under which strength, and whether the guard says so in time: trainings over a grid of τ.

python -m rankfold.benchmarks.stability run chars74k-dec3 --data chars74k36.npz --work DIR --set optimizer.epochs=8
python -m rankfold.benchmarks.stability run glyphs-dec3 --work DIR --ways relative --strengths 0.01 --seeds 0 1 2 3 4
python -m rankfold.benchmarks.stability show

folded      τ on the BatchNorm-folded matrices, as it is
relative    τ on the same, as a share of each layer's σ₁
naive       τ on the kernels as they are: BatchNorm makes up for it
naive, relative    τ on the kernels as they are, as a share of σ₁

Strength 0 is the dense network. Low rank alone acts, all the time. What has its row is not trained again.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import digest
from ..records import EpochRow, Recipe, RegularizerSpec, StabilityRow
from ..train import data as datasets
from ..train.data import Dataset
from ..train.proximal import DivergedError
from ..train.recipe import load_recipe
from ..train.trainer import Progress, train
from .command import in_one_line
from .rows import read, write
from .training import Told, side_by_side

RESULTS = Path("docs/results/stability.jsonl")
WAYS: dict[str, dict[str, Any]] = {
    "folded": {"scale": "folded", "relative": False},
    "relative": {"scale": "folded", "relative": True},
    "naive": {"scale": "raw", "relative": False},
    "naive, relative": {"scale": "raw", "relative": True},
}
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
_ERRORS = 3  # standard errors above chance: what an accuracy must have to be one


@dataclass(frozen=True)
class Job:
    """One training of the grid."""

    recipe: str
    changes: tuple[str, ...]
    way: str
    strength: float
    guard: bool
    seed: int
    work: Path

    def made(self) -> Recipe:
        """What `rankfold train` would be given as a file."""
        recipe = load_recipe(self.recipe, self.changes)
        spec = RegularizerSpec(low_rank=self.strength, guard=self.guard, **WAYS[self.way])
        return recipe.model_copy(update={"regularizer": spec if self.strength else None})

    @property
    def config_hash(self) -> str:
        """Twelve hex digits over all that decides what is learned but the seed."""
        told = self.made().model_dump(mode="json", exclude={"about", "promise"}, exclude_defaults=True)
        return digest(told)

    @property
    def folder(self) -> Path:
        """Of this training alone."""
        return self.work / f"{self.config_hash}-{self.seed}"


def trained(job: Job, data: Dataset, say: Callable[[Progress], None]) -> StabilityRow:
    """Train, on one thread, and tell how it went; a training that diverges is a result too."""
    epochs: list[EpochRow] = []
    diverged, began = None, time.perf_counter()

    def keep(now: Progress) -> None:
        if now.row is not None:
            epochs.append(now.row)
        say(now)

    try:
        record = train(job.made(), data, job.folder, seed=job.seed, threads=1, resume=True, on_progress=keep)
        epochs, took = record.epochs, record.train_s
    except DivergedError as error:
        diverged, took = str(error), time.perf_counter() - began
    shares = [layer.rank / layer.full_rank for layer in epochs[-1].layers] if epochs else []
    labels = data.validation.labels
    return StabilityRow(
        recipe=job.recipe,
        way=job.way,
        strength=job.strength,
        guard=job.guard,
        config_hash=job.config_hash,
        seed=job.seed,
        n=len(labels),
        chance=float(np.bincount(labels).max() / len(labels)),
        accuracies=[row.validation_accuracy for row in epochs],
        ranks=fmean(shares) if shares else None,
        smallest=min(shares) if shares else None,
        events=[event for row in epochs for event in row.events],
        diverged=diverged,
        train_s=took,
    )


_loaded: dict[str, Dataset] = {}  # of a worker process: read once


def _in_worker(data: Path | None, job: Job, told: Told) -> StabilityRow:
    recipe = job.made()
    dataset = _loaded[str(data)] = _loaded.get(str(data)) or datasets.load(recipe.data, data)
    name = f"{job.way}, {job.strength:g}, {'guarded, ' if job.guard else ''}seed {job.seed}"

    def say(now: Progress) -> None:
        if now.step % 20 == 0 or now.row is not None:
            told.put((name, now.step, now.steps, now.left_s, f"loss {now.loss:.3f}"))

    return trained(job, dataset, say)


def run(jobs: Sequence[Job], data: Path | None, count: int, until: float) -> Iterator[StabilityRow]:
    """The rows of all jobs as they end, `count` at a time; what has not ended `until` then is left, to go on from."""
    for future in side_by_side(partial(_in_worker, data), jobs, [job.folder for job in jobs], count, until):
        yield future.result()


def collapsed_at(row: StabilityRow) -> int | None:
    """The first epoch since which accuracy is that of chance; None where it is not at the end.

    A training that diverged has collapsed after its last epoch.
    """
    bound = row.chance + _ERRORS * math.sqrt(row.chance * (1 - row.chance) / row.n)
    above = [number for number, accuracy in enumerate(row.accuracies, 1) if accuracy > bound]
    last = above[-1] if above else 0
    return last + 1 if last < len(row.accuracies) or row.diverged is not None else None


def markdown(rows: Sequence[StabilityRow]) -> str:
    """A line for each way, strength and guard, seeds taken together."""
    lines = [
        "| recipe | τ on | τ | guard | seeds | validation | best | ranks | least | at chance | first said | back |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | --- | --- | ---: |",
    ]
    alike: dict[tuple[Any, ...], list[StabilityRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda one: (one.recipe, one.strength > 0, one.way, one.strength, one.guard)):
        alike[row.recipe, row.way if row.strength else "dense", row.strength, row.guard, row.config_hash].append(row)
    for (recipe, way, strength, guard, _), found in alike.items():
        ends = [row.accuracies[-1] for row in found if row.accuracies]
        tops = [max(row.accuracies) for row in found if row.accuracies]
        fallen = [epoch for row in found if (epoch := collapsed_at(row)) is not None]
        first = [row.events[0].step for row in found if row.events]
        back = [sum(event.layer is None for event in row.events) for row in found]
        cells = [
            recipe,
            way,
            f"{strength:g}",
            "on" if guard else "off",
            str(len(found)),
            _spread(ends),
            _spread(tops),
            _mean([row.ranks for row in found]),
            _mean([row.smallest for row in found]),
            f"{len(fallen)} of {len(found)}, from epoch {min(fallen)}" if fallen else "",
            f"step {min(first)}" if first else "",
            f"{fmean(back):g}" if any(back) else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(shares: Sequence[float | None]) -> str:
    known = [share for share in shares if share is not None]
    return f"{100 * fmean(known):.0f} %" if known else ""


def _spread(shares: Sequence[float]) -> str:
    if not shares:
        return ""
    return f"{100 * fmean(shares):.2f}" + (f" ± {100 * stdev(shares):.2f}" if len(shares) > 1 else "")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    showing = commands.add_parser("show", help="a table of the rows")
    going = commands.add_parser("run", help="train what is missing")
    going.add_argument("recipe", help="as for `rankfold train`")
    going.add_argument("--data", type=Path, help="an npz file")
    going.add_argument("--work", type=Path, required=True, help="folder for runs")
    going.add_argument("--set", dest="changes", nargs="+", default=[], metavar="KEY=VALUE", help="change the recipe")
    going.add_argument("--ways", nargs="+", default=["folded", "relative", "naive"], choices=WAYS, metavar="WAY")
    going.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS, metavar="TAU")
    going.add_argument("--guard", nargs="+", default=["off", "on"], choices=["off", "on"])
    going.add_argument("--seeds", type=int, nargs="+", default=[0])
    going.add_argument("--workers", type=int, default=1)
    going.add_argument("--minutes", type=float, default=1e6, help="stop then; the same command goes on")
    for one in (going, showing):
        one.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    with in_one_line():
        rows = {(row.config_hash, row.seed): row for row in read(given.results, StabilityRow)}
        if given.command == "show":
            print(markdown(list(rows.values())))
            return
        missing = [job for job in _jobs(given) if (job.config_hash, job.seed) not in rows]
        for row in run(missing, given.data, given.workers, time.monotonic() + 60 * given.minutes):
            rows[row.config_hash, row.seed] = row
            write(given.results, rows.values())
            print(row.model_dump_json(), flush=True)


def _jobs(given: argparse.Namespace) -> list[Job]:
    """All of a seed before the next seed; the dense network, where it is asked for, once."""
    if min(given.strengths) < 0:
        raise InputError(f"--strengths: expected 0 or more, found {min(given.strengths)}")
    jobs = {
        (job.config_hash, job.seed): job
        for seed in given.seeds
        for strength in given.strengths
        for way in given.ways
        for guard in given.guard
        for job in [Job(given.recipe, tuple(given.changes), way, strength, guard == "on", seed, given.work)]
    }
    return list(jobs.values())


if __name__ == "__main__":
    main()
