"""Small networks made of one published network, all trained for as long: accuracy against measured latency.

python -m rankfold.benchmarks.trained run resnet20 WEIGHTS DATA --plans FOLDER --work DIR [--workers N --minutes M]
python -m rankfold.benchmarks.trained time resnet20 WEIGHTS --plans FOLDER --work DIR
python -m rankfold.benchmarks.trained show

plan NAME    FOLDER/NAME.plan.json with NAME.onnx, as `rankfold compress` makes them of the published network
shrunk M     compression-aware training from the published weights, held at a share M of the MACs
sliced W     the published network cut to the widths W, all multiples of the tile
narrow W     a network of these widths from scratch, two and a half times as long
dense        the published network itself, trained on

All learn from labels and from the published network's outputs (or with `--weight 0` from labels alone), without the
last tenth of the training images. `run` trains what has no row, each in a process, and leaves the weights in DIR; on a
GPU many share it. `time` measures what DIR holds, side by side.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..devices import card
from ..devices.local import LocalTransport
from ..errors import InputError
from ..export.fold import opened
from ..export.from_torch import to_onnx
from ..export.graphs import save
from ..export.passes.rewrites import REWRITES, rewritten
from ..export.shrink import carry_out, prepare_dense, shrink
from ..export.wish import unmeasured
from ..files import digest
from ..records import (
    DataSpec,
    DistillSpec,
    ModelSpec,
    OptimizerSpec,
    Plan,
    Promise,
    Recipe,
    RegularizerSpec,
    TrainedRow,
)
from ..runtime.costs import count
from ..runtime.inputs import Given
from ..runtime.measure import measure
from ..runtime.serving import sha256_at
from ..runtime.turns import Options
from ..terminal import bars
from ..train.data import Dataset
from ..train.models.resnet import ResNet
from ..train.planned import start_of
from ..train.trainer import Progress, Start, evaluate, train
from .command import in_one_line, machine_of
from .oneshot import MEAN, STD, cifar, exported, published
from .remembering import Remembering
from .rows import read, write
from .slices import sliced
from .training import Told, side_by_side

RESULTS = Path("docs/results/trained.jsonl")
WEIGHTS_FILE = "weights.safetensors"
EPOCHS, FROM_SCRATCH = 40.0, 2.5  # of training on; how many times as long a network from scratch learns
RATE, SCRATCH_RATE, BATCH, IMAGES = 0.05, 0.2, 128, 45_000
EVERY, STRENGTH = 50, 5e-3  # optimizer steps between the shrunk networks' proximal steps, and their τ
WIDTHS = ((16, 16, 32), (8, 16, 48), (8, 16, 32))
MACS = {0.5: 16, 0.4: 8, 0.28: 8}  # shares of the MACs that are held, and of which multiple ranks are then
_CUDA = torch.cuda.is_available()


@dataclass(frozen=True)
class Network:
    """One network to train: its name, and how it comes about."""

    name: str
    plan: Path | None = None
    macs: float | None = None
    widths: tuple[int, int, int] | None = None
    from_scratch: bool = False


@dataclass(frozen=True)
class Job:
    """One training, and the folder it leaves its weights in."""

    network: Network
    seed: int
    weight: float
    epochs: float
    model: str
    weights: Path
    work: Path

    @property
    def folder(self) -> Path:
        """Of this training alone."""
        return self.work / f"{self.model}-{self.network.name.replace(' ', '-')}-{self.config_hash}-{self.seed}"

    def recipe(self, data: Path) -> Recipe:
        """What `rankfold train` would be given as a file."""
        scratch, macs = self.network.from_scratch, self.network.macs
        shrinking = RegularizerSpec(
            low_rank=STRENGTH, relative=True, form="spatial", every=EVERY, tile=MACS.get(macs or 0, 1), hold_macs=macs
        )
        return Recipe(
            about="a small network of a published one, trained on",
            model=ModelSpec(name=self.model, arguments={"weights": str(self.weights)}),
            data=DataSpec(name="npz", path=str(data), validation_share=0.1, mean=MEAN, std=STD, augment="flip-shift"),
            optimizer=OptimizerSpec(
                lr=SCRATCH_RATE if scratch else RATE,
                batch_size=BATCH,
                steps=max(1, round(self.epochs * (FROM_SCRATCH if scratch else 1) * IMAGES / BATCH)),
                weight_decay=5e-4 if scratch else 1e-4,
            ),
            regularizer=None if macs is None else shrinking,
            distill=DistillSpec(weight=self.weight),
            promise=Promise(metric="test_accuracy", at_least=0, measured_on="nothing"),
        )

    @property
    def config_hash(self) -> str:
        """Twelve hex digits over all that decides what is learned but the seed."""
        recipe = self.recipe(Path("data")).model_dump(mode="json")
        recipe["model"]["arguments"]["weights"] = sha256_at(self.weights)
        plan = self.network.plan and sha256_at(self.network.plan)
        told = [recipe, plan, self.network.widths, self.network.from_scratch]
        return digest(told)

    def start(self, data: Dataset, data_path: Path) -> Start:
        """The network as it begins, and the published one to learn from."""
        dense = published(self.model, self.weights, len(data.classes))
        if self.network.plan is not None:
            return start_of(self.recipe(data_path), data, self.network.plan)
        student: nn.Module = copy.deepcopy(dense)
        if self.network.widths is not None:
            assert isinstance(dense, ResNet), "published networks are"
            torch.manual_seed(self.seed)
            narrow = ResNet(len(dense.layer1), dense.conv1.in_channels, len(data.classes), self.network.widths)
            student = narrow if self.network.from_scratch else sliced(dense, self.network.widths)
        origin = sha256_at(self.weights)
        return Start(student, dense.requires_grad_(False), Plan(tile=1), origin, origin)


def networks_of(plans: Path) -> list[Network]:
    """All that are compared, those first that say most."""
    named = [(path, path.name.removesuffix(".plan.json")) for path in sorted(plans.glob("*.plan.json"))]
    written = [(widths, "-".join(map(str, widths))) for widths in WIDTHS]
    return [
        *(Network(f"plan {name}", plan=path) for path, name in named),
        *(Network(f"sliced {name}", widths=widths) for widths, name in written),
        Network("dense"),
        *(Network(f"shrunk {macs:g}", macs=macs) for macs in MACS),
        *(Network(f"narrow {name}", widths=widths, from_scratch=True) for widths, name in written),
    ]


# --- training -----------------------------------------------------------------------------------------------

_loaded: dict[Path, Dataset] = {}  # of a worker process: read once


def trained(job: Job, data_path: Path, say: Callable[[int, int, float], None]) -> TrainedRow:
    """Train one network and leave its weights in its folder; what it scores."""
    data = _loaded.setdefault(data_path, cifar(data_path))
    device = torch.device("cuda" if _CUDA else "cpu")
    job.folder.mkdir(parents=True, exist_ok=True)
    start = job.start(data, data_path)
    teacher = Remembering(start.teacher, job.work / f"said-{job.model}-{sha256_at(job.weights)[:12]}")
    start = replace(start, teacher=teacher)

    def accuracy(model: nn.Module) -> float:
        return evaluate(model.to(device), data, data.test, device)[1]

    dense, before = accuracy(start.teacher), accuracy(start.student)

    def show(now: Progress) -> None:
        if now.step % 50 == 0 or now.row is not None:
            say(now.step, now.steps, now.left_s)

    recipe = job.recipe(data_path)
    record = train(recipe, data, job.folder, seed=job.seed, start=start, resume=True, on_progress=show)
    row = TrainedRow(
        model=job.model,
        network=job.network.name,
        config_hash=job.config_hash,
        seed=job.seed,
        epochs=record.steps * BATCH / len(data.train),
        weight=job.weight,
        n=len(data.test),
        dense_accuracy=dense,
        start_accuracy=before,
        validation_accuracy=record.validation_accuracy,
        test_accuracy=accuracy(start.student),
        device=torch.cuda.get_device_name() if _CUDA else "CPU",
        train_s=record.train_s,
    )
    save_file(
        {name: part.cpu().contiguous() for name, part in start.student.state_dict().items()}, job.folder / WEIGHTS_FILE
    )
    return row


def _in_worker(data: Path, job: Job, told: Told) -> TrainedRow:
    name = f"{job.network.name}, seed {job.seed}" + ("" if job.weight else ", labels alone")
    return trained(job, data, lambda step, steps, left_s: told.put((name, step, steps, left_s, "")))


def run(jobs: Sequence[Job], data: Path, count: int, until: float) -> Iterator[TrainedRow]:
    """The rows of all jobs as they end, `count` at a time; what has not ended `until` then is left, to go on from."""
    for future in side_by_side(partial(_in_worker, data), jobs, [job.folder for job in jobs], count, until):
        yield future.result()


# --- timing -------------------------------------------------------------------------------------------------


def onnx_of(job: Job, data: Dataset, folder: Path) -> Path:
    """The network with what it has learned, as it would be deployed: all with the same exact rewrites."""
    path, learned = folder / f"{job.config_hash}-{job.seed}.onnx", folder / "learned.onnx"
    example = torch.zeros(2, *data.image_shape)
    student = job.start(data, Path("data")).student.eval()
    student.load_state_dict(load_file(job.folder / WEIGHTS_FILE))
    to_onnx(student, example, learned)
    if job.network.macs is not None:
        shrink(learned, path, form="spatial", tile=MACS[job.network.macs])
    elif job.network.plan is not None:
        carry_out(learned, learned, path, unmeasured(Plan.read(job.network.plan)))
    else:
        prepare_dense(learned, path)
    model, _ = opened(path, Given(), folder)
    save(rewritten(model, REWRITES), path)
    return path


def timed(jobs: Sequence[Job], rows: Sequence[TrainedRow], data: Dataset, options: Options) -> Iterator[TrainedRow]:
    """Rows with sizes and times: how many times as fast as the published network each is, all in one bench."""
    mine = {(row.config_hash, row.seed): row for row in rows}
    with tempfile.TemporaryDirectory(prefix="rankfold-") as folder, bars() as new_bar:
        dense = exported(jobs[0].model, jobs[0].weights, data, Path(folder) / "dense.onnx")
        prepare_dense(dense)
        files = {f"n{number}": onnx_of(job, data, Path(folder)) for number, job in enumerate(jobs)}
        bar = new_bar("measuring")
        bench = measure(
            [("dense", dense), *files.items()],
            LocalTransport(),
            card.find("host"),
            options,
            lambda now: bar.show(now.done, now.total, now.left_s, now.what),
        )
        whole = count(dense)
        for job, (name, path), found in zip(jobs, files.items(), bench.comparisons, strict=True):
            assert found.variant == name, "comparisons are in the order of the models"
            costs = count(path)
            assert costs.macs is not None, "shapes are fixed"
            assert whole.macs is not None, "shapes are fixed"
            yield mine[job.config_hash, job.seed].model_copy(
                update={
                    "macs": costs.macs / whole.macs,
                    "parameters": costs.parameters / whole.parameters,
                    "speedup": found.ratio,
                    "low": found.low,
                    "high": found.high,
                    "threads": options.threads,
                    "machine": machine_of(bench.context.facts),
                }
            )


# --- what the rows say --------------------------------------------------------------------------------------


def markdown(rows: Sequence[TrainedRow]) -> str:
    """A network a line, seeds taken together: mean and standard deviation."""
    lines = [
        "| network | seeds | epochs | MACs | parameters | before | test accuracy | to dense, trained alike | speed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    by_name: dict[str, list[TrainedRow]] = defaultdict(list)
    for row in rows:
        by_name[f"{row.network}{'' if row.weight else ', labels alone'}"].append(row)
    dense = {row.seed: row.test_accuracy for row in by_name.get("dense", [])}
    for name, found in by_name.items():
        gaps = [row.test_accuracy - dense[row.seed] for row in found if row.seed in dense]
        speeds = [row for row in found if row.speedup is not None]
        cells = [
            name,
            str(len(found)),
            f"{found[0].epochs:.0f}",
            _share([row.macs for row in speeds]),
            _share([row.parameters for row in speeds]),
            _spread([row.start_accuracy for row in found]),
            _spread([row.test_accuracy for row in found]),
            _spread(gaps, "+"),
            ", ".join(f"{row.speedup:.2f}× ({row.low:.2f} to {row.high:.2f})" for row in speeds),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * fmean(known):.0f} %" if known else ""


def _spread(values: Sequence[float], sign: str = "") -> str:
    """Points of per cent: the mean and the standard deviation."""
    if not values:
        return ""
    told = f"{100 * fmean(values):{sign}.2f}"
    return f"{told} ± {100 * stdev(values):.2f}" if len(values) > 1 else told


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    showing = commands.add_parser("show", help="a table of the rows")
    going = commands.add_parser("run", help="train what is missing")
    timing = commands.add_parser("time", help="measure what was trained")
    for one in (going, timing):
        one.add_argument("model", choices=["resnet20", "resnet56"])
        one.add_argument("weights", type=Path)
        one.add_argument("data", type=Path)
        one.add_argument("--plans", type=Path, required=True, help="folder of NAME.plan.json and NAME.onnx")
        one.add_argument("--work", type=Path, required=True, help="folder for runs and weights")
        one.add_argument("--epochs", type=float, default=EPOCHS)
        one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        one.add_argument("--weight", type=float, default=DistillSpec().weight, help="of distillation")
        one.add_argument("--only", nargs="+", default=[], metavar="WORD", help="networks whose names begin so")
    going.add_argument("--workers", type=int, default=1)
    going.add_argument("--minutes", type=float, default=1e6, help="stop then; the same command goes on")
    timing.add_argument("--threads", type=int, default=1)
    timing.add_argument("--pairs", type=int, default=8)
    for one in (going, timing, showing):
        one.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    with in_one_line():
        rows = {_key(row): row for row in read(given.results, TrainedRow)}
        if given.command == "show":
            print(markdown(list(rows.values())))
            return
        if given.command == "run":
            missing = [job for job in _jobs(given) if (job.config_hash, job.seed) not in rows]
            found = run(missing, given.data, given.workers, time.monotonic() + 60 * given.minutes)
        else:
            there = [job for job in _jobs(given) if (job.config_hash, job.seed) in rows]
            options = Options(threads=given.threads, pairs=given.pairs)
            found = timed(there, list(rows.values()), cifar(given.data), options)
        for row in found:
            rows[_key(row)] = row
            write(given.results, rows.values())
            print(row.model_dump_json(), flush=True)


def _jobs(given: argparse.Namespace) -> list[Job]:
    """All networks of a seed before the next seed."""
    networks = [one for one in networks_of(given.plans) if not given.only or one.name.startswith(tuple(given.only))]
    if not networks:
        raise InputError(f"--only: no network begins with {', '.join(given.only)}; see --help")
    return [
        Job(network, seed, given.weight, given.epochs, given.model, given.weights, given.work)
        for seed in given.seeds
        for network in networks
    ]


def _key(row: TrainedRow) -> tuple[str, int]:
    return row.config_hash, row.seed


if __name__ == "__main__":
    main()
