"""A planned network trained on with distillation and without: what `rankfold train --plan` does, by its own trainer.

python -m rankfold.benchmarks.planned resnet20 WEIGHTS DATA --macs 0.5 --steps 600 --results docs/results/planned.jsonl

The published network is compressed with 512 calibration images of the training part (or as `--plan` says); from there
both learn for the same number of steps, on the same images in the same order, at the same rate: from the labels alone,
and from the dense network's outputs too. The last tenth of the training images is the validation part, and nothing
learns from it: all are scored on it, or with `--split test` on the test images. A row that is there is skipped; with
`--work DIR` a run that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from ..errors import InputError
from ..export.compress import Job
from ..export.wish import Wish
from ..files import replacing_all
from ..records import DataSpec, DistillSpec, ModelSpec, OptimizerSpec, Plan, PlannedRow, Promise, Recipe
from ..runtime.serving import sha256_at
from ..train.data import Dataset
from ..train.planned import planned, start_of
from ..train.trainer import Progress, evaluate, train
from .command import in_one_line
from .oneshot import MEAN, STD, calibration_inputs, cifar, exported
from .rows import read, write

_SAID_EVERY = 50  # steps


def recipe_of(given: argparse.Namespace, weight: float) -> Recipe:
    """What `rankfold train` would be given as a file."""
    made = Recipe(
        about="a published network, planned and trained on",
        model=ModelSpec(name=given.model, arguments={"weights": str(given.weights)}),
        data=DataSpec(
            name="npz", path=str(given.data), validation_share=0.1, mean=MEAN, std=STD, augment=given.augment
        ),
        optimizer=OptimizerSpec(lr=given.lr, batch_size=given.batch, steps=given.steps, weight_decay=1e-4),
        distill=DistillSpec(weight=weight, temperature=given.temperature),
        promise=Promise(metric="test_accuracy", at_least=0, measured_on="nothing"),
    )
    return planned(made)


def compressed(given: argparse.Namespace, data: Dataset, seed: int, folder: Path) -> Path:
    """The plan of the published network at a share of its MACs, the small file beside it."""
    if (folder / "small.onnx").exists():
        return folder / "small.plan.json"
    dense = exported(given.model, given.weights, data, folder / "dense.onnx")
    (name,) = (entry.name for entry in onnx.load(dense).graph.input)
    np.savez(folder / "data.npz", **{name: calibration_inputs(data, seed)}, allow_pickle=False)
    with replacing_all(folder, ["small.plan.json", "small.onnx"]) as scratch:
        Job(Wish(macs=given.macs), data=folder / "data.npz").into(scratch, dense, "small.onnx")
    return folder / "small.plan.json"


def run(given: argparse.Namespace, rows: list[PlannedRow], said: Callable[[str], None]) -> Iterator[PlannedRow]:
    """Every row that is not there yet."""
    identity, there = identity_of(given), asked_for(rows, given)
    wanted = {key: recipe_of(given, key[1]) for key in keys(given) if key not in there}
    if not wanted:
        return
    data = cifar(given.data)
    part = {"validation": data.validation, "test": data.test}[given.split]
    network = f"{given.model}-{identity['weights_sha256'][:8]}-{given.macs:g}"
    plans: dict[int, Path] = {}
    scores: dict[int, tuple[float, float]] = {}

    def accuracy(model: nn.Module) -> float:
        here = torch.device("cpu")  # whatever it was trained on: all are scored alike
        return evaluate(model.to(here), data, part, here)[1]

    with tempfile.TemporaryDirectory() as scratch:
        for (seed, weight), recipe in wanted.items():
            folder = (given.work or Path(scratch)) / f"{network}-{seed}"
            if seed not in plans:
                folder.mkdir(parents=True, exist_ok=True)
                plans[seed] = given.plan or compressed(given, data, seed, folder)
            start, plan = start_of(recipe, data, plans[seed]), Plan.read(plans[seed])
            if seed not in scores:
                scores[seed] = accuracy(start.teacher), accuracy(start.student)
            dense, before = scores[seed]
            said(f"seed {seed}, weight {weight:g}: dense {dense:.2%}, compressed {before:.2%}")

            def show(now: Progress) -> None:
                if now.step % _SAID_EVERY == 0:
                    said(f"{now.step}/{now.steps}, loss {now.loss:.4f}, {now.left_s:.0f} s left")

            name = f"{weight:g}-{given.lr:g}-{given.steps}"
            record = train(recipe, data, folder / name, seed=seed, start=start, resume=True, on_progress=show)
            yield PlannedRow(
                **identity,
                n=len(part),
                seed=seed,
                macs=_macs(plan),
                weight=weight,
                temperature=given.temperature,
                dense_accuracy=dense,
                compressed_accuracy=before,
                trained_accuracy=accuracy(start.student),
                train_s=record.train_s,
            )


def keys(given: argparse.Namespace) -> list[tuple[int, float]]:
    """Seed and weight of distillation of every row that is asked for."""
    return [(seed, weight) for seed in given.seeds for weight in (0.0, given.weight)]


def identity_of(given: argparse.Namespace) -> dict[str, Any]:
    """What all of these rows have in common."""
    return {
        "model": given.model,
        "weights_sha256": sha256_at(given.weights),
        "split": given.split,
        "plan_sha256": given.plan and sha256_at(given.plan),
        "wanted": given.macs,
        "steps": given.steps,
        "batch": given.batch,
        "lr": given.lr,
        "augment": given.augment,
    }


def asked_for(rows: Iterable[PlannedRow], given: argparse.Namespace) -> dict[tuple[int, float], PlannedRow]:
    """Those of the rows that are asked for, by their keys."""
    identity = identity_of(given)
    alike = [row for row in rows if all(getattr(row, name) == value for name, value in identity.items())]
    found = {(row.seed, row.weight): row for row in alike if not row.weight or row.temperature == given.temperature}
    return {key: found[key] for key in keys(given) if key in found}


def _macs(plan: Plan) -> float:
    layers = plan.layers.values()
    return sum(layer.macs or 0 for layer in layers) / sum(layer.macs_dense or 0 for layer in layers)


def summary(rows: Collection[PlannedRow]) -> str:
    """Distilled against not, seed by seed, of rows that were asked for together."""
    without = {row.seed: row.trained_accuracy for row in rows if not row.weight}
    gains = {row.seed: 100 * (row.trained_accuracy - without[row.seed]) for row in rows if row.weight}
    spread = f" ± {stdev(gains.values()):.2f}" if len(gains) > 1 else ""
    each = ", ".join(f"seed {seed}: {gain:+.2f}" for seed, gain in gains.items())
    return f"distillation gains {fmean(gains.values()):+.2f}{spread} points ({each})"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["resnet20", "resnet56"])
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--plan", type=Path, help="of this network, instead of --macs; its .onnx lies beside it")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--weight", type=float, default=DistillSpec().weight, help="of distillation")
    parser.add_argument("--temperature", type=float, default=DistillSpec().temperature)
    parser.add_argument("--augment", choices=["none", "shift", "flip-shift"], default="flip-shift")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="calibration images, order of batches")
    parser.add_argument("--work", type=Path, help="folder for plans and runs, to go on from")
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    given = parser.parse_args()
    with in_one_line("rows are kept, and with --work a run goes on where it was"):
        if not 0 < given.weight <= 1:
            raise InputError(f"--weight: expected a share in (0, 1], found {given.weight:g}; 0 is trained beside it")
        rows = read(given.results, PlannedRow)
        for row in run(given, rows, lambda text: print(text, flush=True)):
            rows.append(row)
            write(given.results, rows)
            print(f"{row.split}: {row.model_dump_json()}", flush=True)
        print(summary(asked_for(rows, given).values()))


if __name__ == "__main__":
    main()
