"""Accuracy won back without labels against fine-tuning with them: `rankfold tune` and `train.compact`.

python -m rankfold.benchmarks.tuning resnet20 WEIGHTS DATA --macs 0.5 --steps 600 --results docs/results/tuning.jsonl

The published network is compressed with 512 calibration images of the training part; from there both learn for the same
number of steps, on the same images in the same order: the ONNX file from the original's outputs, the module (the same
plan and weights, BatchNorm kept) from the labels. Learning rates are chosen on the validation part: `--lr`,
`--labelled-lr`. The last tenth of the training images is that part, and nothing learns from it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional as F

from ..errors import RankfoldError, complaint
from ..export.compress import Job
from ..export.evaluate import score
from ..export.graphs import with_weights
from ..export.wish import Wish
from ..records import Compressed, TuningRow
from ..train.compact import compact
from ..train.data.dataset import augment
from ..train.models import build
from ..train.tune import Settings, batch_of, schedule, tune
from .oneshot import ModelSpec, Split, calibration_inputs, cifar, exported
from .rows import read, write

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..train.data import Dataset


def fine_tuned(
    module: nn.Module, inputs: NDArray, labels: NDArray, settings: Settings, said: Callable[[str], None]
) -> nn.Module:
    """Labels, cross-entropy and SGD with momentum: what one does in torch; the schedule and batches of `tune`."""
    module.train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (missing in the stubs)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=settings.lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
    for step in range(settings.steps):
        chosen = batch_of(step, len(inputs), settings)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * schedule(step, settings.steps)
        images = augment(torch.from_numpy(inputs[chosen]), settings.augment, (settings.seed, step))
        images = images.contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(module(images), torch.from_numpy(labels[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 50 == 0:
            said(f"labelled: {step + 1}/{settings.steps}, loss {loss.item():.4f}")
    return module.eval()


def run(given: argparse.Namespace, data: Dataset, folder: Path, said: Callable[[str], None]) -> TuningRow:
    """Compress, tune, fine-tune, score."""
    part = {"validation": data.validation, "test": data.test}[given.split]
    tested = data.inputs(part.images)
    dense = exported(given.model, given.weights, data, folder / "dense.onnx")
    (name,) = (entry.name for entry in onnx.load(dense).graph.input)
    np.savez(folder / "data.npz", **{name: calibration_inputs(data, given.seed)}, allow_pickle=False)
    summary, *_, small = Job(Wish(macs=given.macs), data=folder / "data.npz").into(folder, dense, "small.onnx")
    done = Compressed.read(folder / summary)

    def accuracy(path: Path) -> float:
        return score(path, tested, part.labels, data="", split=given.split, seed=given.seed, name="").value

    before = accuracy(folder / small)
    said(f"dense {accuracy(dense):.2%}, compressed {before:.2%}")
    settings = Settings(steps=given.steps, batch=given.batch, lr=given.lr, seed=given.seed, augment=given.augment)
    inputs = data.inputs(data.train.images)
    proto, tuned = onnx.load(folder / small), None
    if given.lr > 0:
        feed = {name: inputs}
        weights, _ = tune(
            proto,
            onnx.load(dense),
            feed,
            settings,
            on_progress=lambda now: (
                said(f"tune: {now.step}/{now.steps}, loss {now.loss:.4f}") if now.step % 50 == 0 else None
            ),
        )
        onnx.save(with_weights(proto, weights), folder / "tuned.onnx")
        tuned = accuracy(folder / "tuned.onnx")
        said(f"tuned {tuned:.2%}")
    module = build(ModelSpec(name=given.model, arguments={"weights": str(given.weights)}), 3, len(data.classes)).eval()
    made = compact(module, proto, done.plan, torch.from_numpy(inputs[:4]))
    labelled = fine_tuned(made, inputs, data.train.labels, replace(settings, lr=given.labelled_lr), said)
    with torch.no_grad():
        found = torch.cat([labelled(torch.from_numpy(tested[i : i + 500])) for i in range(0, len(tested), 500)])
    fine = float((found.argmax(1).numpy() == part.labels).mean())
    macs = sum(layer.macs or 0 for layer in done.plan.layers.values())
    return TuningRow(
        model=given.model,
        split=given.split,
        n=len(tested),
        seed=given.seed,
        macs=macs / sum(layer.macs_dense or 0 for layer in done.plan.layers.values()),
        steps=given.steps,
        batch=given.batch,
        augment=given.augment,
        lr=given.lr,
        labelled_lr=given.labelled_lr,
        dense_accuracy=accuracy(dense),
        compressed_accuracy=before,
        tuned_accuracy=tuned,
        labelled_accuracy=fine,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["resnet20", "resnet56"])
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="of tune; 0 leaves it out")
    parser.add_argument("--labelled-lr", type=float, default=0.01)
    parser.add_argument("--augment", choices=["none", "shift", "flip-shift"], default="flip-shift", help="for both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    given = parser.parse_args()
    split: Split = given.split
    torch.set_num_threads(1)
    try:
        rows = read(given.results, TuningRow)
        asked = (given.model, split, given.seed, given.steps, given.batch, given.lr, given.labelled_lr, given.augment)
        if any((r.model, r.split, r.seed, r.steps, r.batch, r.lr, r.labelled_lr, r.augment) == asked for r in rows):
            print(f"{given.results}: this row is there already; delete it to measure again")
            return
        with tempfile.TemporaryDirectory() as folder:
            row = run(given, cifar(given.data), Path(folder), lambda text: print(text, flush=True))
    except RankfoldError as error:
        print(complaint(str(error)), file=sys.stderr)
        sys.exit(error.exit_code)
    write(given.results, [*rows, row])
    print(f"{split}: {row.model_dump_json()}")


if __name__ == "__main__":
    main()
