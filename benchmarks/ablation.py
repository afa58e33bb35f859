"""What each part of compression-aware training is worth: Dec3 on Chars74K, arm by arm, five seeds.

python -m rankfold.benchmarks.ablation run DATA.npz --work DIR [--workers N --minutes M]
python -m rankfold.benchmarks.ablation time --work DIR
python -m rankfold.benchmarks.ablation show

post-hoc SVD     the dense network, cut to a share of its parameters by one energy for all layers
low rank         the same cut of a network that was trained with τ alone
groups, both     trained with λ alone, and with τ too, and held at a share of the MACs
narrow           dense networks of smaller widths, trained as long
narrow, taught   those that learn from the dense one throughout

Each as it is, fine-tuned from labels, and fine-tuned with what the dense network of its seed puts out. τ, λ and the
rate of fine-tuning are chosen first, on the validation split, with seed 0: each from three values, at the middle size,
τ and λ without fine-tuning, the rate for the post-hoc SVD. `run` trains what has no row, each in a process with one
thread, and writes a row at once; `time` measures all networks of a seed side by side, those of the same shapes once;
`show` prints tables and draws the picture. With `--full` all of it is about the network of full width, with the
strengths that were chosen at half of it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx

from ..devices import card
from ..devices.local import LocalTransport
from ..errors import CheckFailed, DeviceError, InputError, RankfoldError, complaint
from ..export.evaluate import score
from ..records import AblationRow, Finish
from ..runtime.costs import count
from ..runtime.measure import measure
from ..runtime.turns import Options
from ..terminal import bars
from ..train import data as datasets
from ..train.data import Dataset
from ..train.trainer import Progress
from .ablated import draw, markdown, tried
from .arms import BOTH, DENSE, FULL, GROUPS, HALF, LOW_RANK, SVD, Family, Network, Strengths, made, train_seconds
from .command import in_one_line, machine_of
from .oneshot import Split
from .rows import read, write
from .training import Told, side_by_side

RESULTS = Path("docs/results/ablation.jsonl")
FIRST: tuple[Finish, ...] = ("none", "distilled")  # of all seeds, before "labels"
QUESTIONS: tuple[
    tuple[str, str, Finish, tuple[float, ...]], ...
] = (  # a strength, the arm it is chosen for, how, of what
    ("low_rank", LOW_RANK, "none", (0.002, 0.005, 0.012)),
    ("group", GROUPS, "none", (0.15, 0.25, 0.4)),
    ("both", BOTH, "none", (0.002, 0.005, 0.012)),
    ("rate", SVD, "distilled", (0.01, 0.03, 0.1)),
)
MIDDLE = 1  # of the three sizes
Rows = dict[tuple[str, int], AblationRow]


def candidates(question: tuple[str, str, Finish, tuple[float, ...]], family: Family, found: Strengths) -> list[Network]:
    """The networks that a strength is chosen by."""
    what, arm, finish, values = question
    return [family.compressed(arm, MIDDLE, replace(found, **{what: value}), finish, seed=0) for value in values]


def choose(family: Family, rows: Rows, train: Callable[[Sequence[Network]], None]) -> Strengths:
    """Each strength by validation accuracy, one after the other; `train` sees to rows that are missing."""
    found = Strengths()
    for question in QUESTIONS:
        networks = candidates(question, family, found)
        train([network for network in networks if key(network) not in rows])
        scores = [row.validation_accuracy if (row := rows.get(key(network))) else 0.0 for network in networks]
        if not any(scores):
            raise CheckFailed(f"{question[1]}: expected rows to choose '{question[0]}' by, found none; run it first")
        found = replace(found, **{question[0]: question[3][scores.index(max(scores))]})
    return found


def key(network: Network) -> tuple[str, int]:
    """Of its row."""
    return network.config_hash, network.seed


def grid(family: Family, found: Strengths, seeds: Sequence[int], only: Sequence[str]) -> list[Network]:
    """All networks: every arm of a seed before the next seed; then those that learn on from labels, and the taught."""
    every = [network for seed in seeds for finish in FIRST for network in family.networks(found, finish, seed)]
    every += [network for seed in seeds for network in family.networks(found, "labels", seed)]
    every += [network for seed in seeds for network in family.taught(found, seed)]
    networks = [network for network in every if not only or network.arm in only]
    if not networks:
        raise InputError(f"--only: no arm of {', '.join(only)}; the arms are {', '.join({n.arm for n in every})}")
    return networks


# --- training -----------------------------------------------------------------------------------------------

_loaded: dict[Path, Dataset] = {}  # of a worker process: read once


def row_of(
    network: Network, path: Path, work: Path, say: Callable[[str, Progress], None], *, test: bool
) -> AblationRow:
    """Make a network and score it; on the test images only what was not merely tried."""
    data = _loaded.get(path) or datasets.load(network.training.recipe.data, path)
    _loaded[path] = data
    file = made(network, data, work, say)

    def accuracy(split: Split) -> float:
        part = {"validation": data.validation, "test": data.test}[split]
        inputs, name = data.inputs(part.images), network.arm
        return score(file, inputs, part.labels, data=data.name, split=split, seed=network.seed, name=name).value

    costs, regularizer = count(file), network.training.recipe.regularizer
    assert costs.macs is not None, "shapes are fixed"
    return AblationRow(
        arm=network.arm,
        point=network.point,
        finish=network.finish,
        seed=network.seed,
        config_hash=network.config_hash,
        low_rank=regularizer.low_rank if regularizer else 0.0,
        group=regularizer.group if regularizer else 0.0,
        rate=None if network.finish == "none" or network.taught else network.rate,
        epochs=network.epochs,
        parameters=costs.parameters,
        macs=costs.macs,
        validation_accuracy=accuracy("validation"),
        test_accuracy=accuracy("test") if test else None,
        n=len(data.test),
        train_s=train_seconds(network, work),
    )


def _in_worker(data: Path, work: Path, test: bool, network: Network, told: Told) -> AblationRow:
    name = f"{network.arm}, {network.point}, seed {network.seed}"

    def say(what: str, now: Progress) -> None:
        if now.step % 10 == 0 or now.row is not None:
            told.put((f"{name}: {what}", now.step, now.steps, now.left_s, f"loss {now.loss:.3f}"))

    return row_of(network, data, work, say, test=test)


def trained(
    networks: Sequence[Network], data: Path, work: Path, workers: int, until: float, *, test: bool
) -> Iterator[AblationRow]:
    """Rows as they are known, `workers` at a time. A network that fails is told of and left; CheckFailed at the end,
    unless they are only tried.
    """
    failed = 0
    folders = sorted({network.file(work).parent for network in networks})
    try:
        for future in side_by_side(partial(_in_worker, data, work, test), networks, folders, workers, until):
            try:
                yield future.result()
            except RankfoldError as error:
                failed += 1
                print(complaint(str(error)), flush=True)
    except BrokenProcessPool as error:
        raise DeviceError("a training process was killed; free memory, then give the same command") from error
    if failed and test:
        raise CheckFailed(f"{failed} of {len(networks)} networks failed; what they said stands above")


# --- timing -------------------------------------------------------------------------------------------------


def shapes_of(path: Path) -> str:
    """What decides how fast a network is: its operators and the sizes of their kernels, in order.

    A factor that went through torch has got a bias of zeros, which costs nothing.
    """
    graph = onnx.load(path).graph
    sizes = {entry.name: list(entry.dims) for entry in graph.initializer if len(entry.dims) > 1}
    return json.dumps([(node.op_type, [sizes[name] for name in node.input if name in sizes]) for node in graph.node])


def timed(networks: Sequence[Network], rows: Rows, work: Path, options: Options) -> Iterator[AblationRow]:
    """Rows of one seed with times: how many times as fast as the dense network each is, all in one bench."""
    dense = next((network for network in networks if network.arm == DENSE), None)
    if dense is None:
        raise InputError(f"seed {networks[0].seed}: expected a row of the dense network, found none; run it first")
    baseline, kinds = shapes_of(dense.file(work)), {network: shapes_of(network.file(work)) for network in networks}
    files = {kind: network.file(work) for network, kind in reversed(kinds.items()) if kind != baseline}
    with bars() as new_bar:
        bar = new_bar(f"measuring seed {dense.seed}")
        bench = measure(
            [("dense", dense.file(work)), *((f"n{number}", file) for number, file in enumerate(files.values()))],
            LocalTransport(),
            card.find("host"),
            options,
            lambda now: bar.show(now.done, now.total, now.left_s, now.what),
        )
    found = dict(zip(files, ((c.ratio, c.low, c.high) for c in bench.comparisons), strict=True))
    found[baseline] = (1.0, 1.0, 1.0)
    for network, kind in kinds.items():
        ratio, low, high = found[kind]
        told = {"speedup": ratio, "low": low, "high": high, "threads": options.threads}
        yield rows[key(network)].model_copy(update={**told, "machine": machine_of(bench.context.facts)})


# --- the command line ---------------------------------------------------------------------------------------


def main() -> None:
    """Run, time or show."""
    given = _parser().parse_args()
    with in_one_line():
        _do(given)


def _do(given: argparse.Namespace) -> None:
    half = replace(HALF, epochs=given.epochs, fine_epochs=given.fine_epochs)
    family = replace(FULL, epochs=given.epochs, fine_epochs=given.fine_epochs) if given.full else half
    rows: Rows = {(row.config_hash, row.seed): row for row in read(given.results, AblationRow)}

    def keep(new: Iterator[AblationRow]) -> None:
        for row in new:
            rows[row.config_hash, row.seed] = row
            write(given.results, rows.values())
            print(row.model_dump_json(), flush=True)

    if given.command == "run":
        until = time.monotonic() + 60 * given.minutes

        def train(networks: Sequence[Network], test: bool = False) -> None:
            keep(trained(networks, given.data, given.work, given.workers, until, test=test))

        wanted = grid(family, choose(half, rows, train), given.seeds, given.only)
        train([n for n in wanted if key(n) not in rows or rows[key(n)].test_accuracy is None], test=True)
        return
    found = choose(half, rows, lambda _: None)
    there = [n for n in grid(family, found, given.seeds, given.only) if key(n) in rows]
    if given.command == "show":
        final = [rows[key(network)] for network in there if rows[key(network)].test_accuracy is not None]
        draw(final, given.results.with_suffix(".full.svg" if given.full else ".svg"))
        questions = {what[0]: [rows.get(key(n)) for n in candidates(what, half, found)] for what in QUESTIONS}
        print(f"{markdown(final)}\n\n{tried(questions, found)}")
        return
    for seed in given.seeds:
        mine = [network for network in there if network.seed == seed]
        if mine and (given.again or any(rows[key(network)].speedup is None for network in mine)):
            keep(timed(mine, rows, given.work, Options(threads=given.threads, pairs=given.pairs)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rankfold.benchmarks.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    going = commands.add_parser("run", help="train what is missing")
    timing = commands.add_parser("time", help="measure what was trained")
    showing = commands.add_parser("show", help="tables, and the picture beside the rows")
    going.add_argument("data", type=Path, help="Chars74K as an npz file")
    going.add_argument("--workers", type=int, default=1, help="trainings at a time, one thread each")
    going.add_argument("--minutes", type=float, default=1e6, help="stop then; the same command goes on")
    timing.add_argument("--threads", type=int, default=1)
    timing.add_argument("--pairs", type=int, default=8)
    timing.add_argument("--again", action="store_true", help="seeds that were measured, too")
    timing.set_defaults(only=[])  # what is measured side by side can be compared
    for one in (going, showing):
        one.add_argument("--only", nargs="+", default=[], metavar="ARM", help="'low rank' and such")
    for one in (going, timing):
        one.add_argument("--work", type=Path, required=True, help="folder for trainings and networks")
    for one in (going, timing, showing):
        one.add_argument("--results", type=Path, default=RESULTS)
        one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
        one.add_argument("--full", action="store_true", help="the network of full width")
        one.add_argument("--epochs", type=int, default=HALF.epochs)
        one.add_argument("--fine-epochs", type=int, default=HALF.fine_epochs)
    return parser


if __name__ == "__main__":
    main()
