"""Compression without training: accuracy against MACs, by form, with and without data, and of pruning.

python -m rankfold.benchmarks.oneshot run resnet20 WEIGHTS DATA --results docs/results/oneshot.jsonl
python -m rankfold.benchmarks.oneshot show docs/results/oneshot.jsonl

WEIGHTS is the published checkpoint of that network, DATA CIFAR-10 as an npz file. Calibration: 512 training images,
others for each seed, none of them among the last tenth, which is the validation part. A row that is there is skipped.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

from ..errors import CheckFailed, RankfoldError, complaint
from ..export.calibration import Samples
from ..export.evaluate import score
from ..export.fold import tidy
from ..export.frontier import Step
from ..export.graphs import load, save
from ..export.layers import layers_of
from ..export.network import Network
from ..export.passes.fold_batchnorm import fold_batchnorm
from ..export.passes.fold_channels import fold_channels
from ..export.prune import prune
from ..export.reporting import silent
from ..export.wish import AUTO_FORMS, Wish, plan_of, steps_of
from ..files import digest, replacing
from ..records import DataSpec, ModelSpec, OneShotRow
from .rows import read, write

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from ..train.data import Dataset

Split = Literal["validation", "test"]
CALIBRATION = 512
SHARES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4)
WORST = 0.2  # of accuracy lost: smaller networks of a method are not tried after it
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class Method:
    """How a network is made smaller. `refit` is for pruning only, `uniform` gives each layer the same energy."""

    name: str
    forms: tuple[str, ...] = ()
    aware: bool = True
    uniform: bool = False
    refit: bool = True

    @property
    def config_hash(self) -> str:
        """Twelve hex digits over all of it."""
        return digest(asdict(self))


FORMS = ("channel", "input-channel", "spatial", "tucker-2")
METHODS = {
    method.name: method
    for method in (
        *(Method(f"{form}, aware", (form, "linear")) for form in FORMS),
        *(Method(f"{form}, plain", (form, "linear"), aware=False) for form in FORMS),
        Method("auto, aware", AUTO_FORMS),
        Method("auto, plain", AUTO_FORMS, aware=False),
        *(Method(f"{form}, one energy", (form,), aware=False, uniform=True) for form in ("channel", "spatial")),
        Method("prune, refitted"),
        Method("prune, not refitted", refit=False),
        Method("prune, weight norm", aware=False),
    )
}


class Bench:
    """One trained network with its data: scored whole, then at any share of its MACs."""

    def __init__(self, name: str, weights: Path, data: Path, seed: int, split: Split, folder: Path) -> None:
        self.name, self.seed, self._folder = name, seed, folder
        self.split: Split = split
        self._data = cifar(data)
        part = {"validation": self._data.validation, "test": self._data.test}[split]
        self._inputs, self._labels = self._data.inputs(part.images), part.labels
        self._dense = exported(name, weights, self._data, folder / "dense.onnx")
        self.samples = _calibration(self._data, seed, self._model().graph.inputs[0].name or "")
        self.accuracy = self._accuracy(self._model())
        self._steps: dict[str, list[Step]] = {}

    def row(self, method: Method, share: float) -> OneShotRow:
        """The network at about `share` of its MACs. Raises CheckFailed where there is none."""
        small, macs = self._pruned(method, share) if not method.forms else self._factorized(method, share)
        return OneShotRow(
            model=self.name,
            method=method.name,
            config_hash=method.config_hash,
            seed=self.seed,
            split=self.split,
            n=len(self._labels),
            wanted=share,
            macs=macs / self._macs(self._model()),
            accuracy=self._accuracy(small),
            dense_accuracy=self.accuracy,
        )

    def _pruned(self, method: Method, share: float) -> tuple[ir.Model, int]:
        model = self._model()
        samples = self.samples if method.aware else None
        prune(model, 1 - share, tile=1, samples=samples, refit=method.refit)
        fold_channels(model)
        return model, self._macs(model)

    def _factorized(self, method: Method, share: float) -> tuple[ir.Model, int]:
        network = Network(self._model(), self.samples if method.aware else None, silent)
        wish = Wish(forms=method.forms, macs=share)
        if method.uniform:
            wish = Wish(forms=method.forms, energy=_energy(network, method.forms, share))
        elif method.name not in self._steps:
            self._steps[method.name] = steps_of(network, wish)
        plan = network.factorize(plan_of(network, wish, self._steps.get(method.name, []), {}, {}))
        return network.model, sum(layer.macs or 0 for layer in plan.layers.values())

    def _model(self) -> ir.Model:
        model = load(self._dense)
        tidy(model)
        fold_batchnorm(model)
        return model

    @staticmethod
    def _macs(model: ir.Model) -> int:
        return sum(layer.macs or 0 for layer in layers_of(model))

    def _accuracy(self, model: ir.Model) -> float:
        path = self._folder / "small.onnx"
        save(model, path)
        return score(path, self._inputs, self._labels, data="", split=self.split, seed=self.seed, name=self.name).value


def cifar(path: Path) -> Dataset:
    """CIFAR-10 as the published networks see it; the last tenth of the training part is the validation part."""
    from ..train.data.npz import load_npz

    return load_npz(DataSpec(name="npz", path=str(path), validation_share=0.1, mean=MEAN, std=STD), path)


def published(name: str, weights: Path, classes: int) -> torch.nn.Module:
    """A network with its published weights, for colour images, as it is used."""
    from ..train.models import build

    return build(ModelSpec(name=name, arguments={"weights": str(weights)}), 3, classes).eval()


def exported(name: str, weights: Path, data: Dataset, path: Path) -> Path:
    """The same as an ONNX file."""
    import torch

    from ..export.from_torch import to_onnx

    to_onnx(published(name, weights, len(data.classes)), torch.zeros(2, *data.image_shape), path)
    return path


def calibration_inputs(data: Dataset, seed: int) -> NDArray[np.float32]:
    """The training images that a seed chooses, as the network sees them."""
    chosen = np.random.default_rng(seed).choice(len(data.train), CALIBRATION, replace=False)
    return data.inputs(data.train.images[np.sort(chosen)])


def _calibration(data: Dataset, seed: int, name: str) -> Samples:
    inputs = calibration_inputs(data, seed)
    return Samples(data.name, CALIBRATION, None, lambda start, stop: {name: inputs[start:stop]})


def _energy(network: Network, forms: Sequence[str], share: float) -> float:
    """The largest energy, one for all layers, with at most that share of the MACs; by halving."""
    dense = sum(layer.macs or 0 for layer in layers_of(network.model))

    @cache
    def macs(energy: float) -> int:
        plan = plan_of(network, Wish(forms=forms, energy=energy), [], {}, {})
        return sum(layer.macs or 0 for layer in plan.layers.values())

    low, high = 1e-3, 1.0
    if macs(low) > share * dense:
        raise CheckFailed(f"expected {share:.0%} of the MACs, found more at the smallest ranks")
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if macs(middle) > share * dense else (middle, high)
    return low


def run(bench: Bench, methods: Sequence[Method], shares: Sequence[float], results: Path) -> Iterator[OneShotRow]:
    """Every row that is not there yet, written as soon as it is known."""
    rows = {_key(row): row for row in read(results, OneShotRow)}
    for method in methods:
        for share in sorted(shares, reverse=True):
            key = (bench.name, method.config_hash, bench.seed, bench.split, share)
            if key not in rows:
                try:
                    rows[key] = bench.row(method, share)
                except CheckFailed:
                    break
                write(results, rows.values())
                yield rows[key]
            if rows[key].dense_accuracy - rows[key].accuracy > WORST:
                break


def _key(row: OneShotRow) -> tuple[str, str, int, str, float]:
    return row.model, row.config_hash, row.seed, row.split, row.wanted


# --- what the rows say --------------------------------------------------------------------------------------


def removed_at(rows: Sequence[OneShotRow], drop: float) -> float:
    """The share of the MACs gone where a curve first loses `drop` of accuracy, linear between its points."""
    gone, lost = 0.0, 0.0
    for row in sorted(rows, key=lambda row: -row.macs):
        more, worse = 1 - row.macs, row.dense_accuracy - row.accuracy
        if worse > drop:
            return gone + (more - gone) * max(drop - lost, 0.0) / (worse - min(lost, drop))
        gone, lost = more, worse
    return gone


def markdown(rows: Sequence[OneShotRow]) -> str:
    """MACs removed at a drop of one and of three points: the mean over calibration seeds, the least and the most."""
    lines = ["| network | method | seeds | at 1 point | at 3 points |", "| --- | --- | ---: | ---: | ---: |"]
    for (model, method), found in _curves(rows).items():
        cells = []
        for drop in (0.01, 0.03):
            gone = [removed_at(curve, drop) for curve in found.values()]
            span = f" ({min(gone):.1%} to {max(gone):.1%})" if len(gone) > 1 else ""
            ends = any(all(row.dense_accuracy - row.accuracy <= drop for row in curve) for curve in found.values())
            cells.append(f"{'over ' if ends else ''}{np.mean(gone):.1%}{span}")
        lines.append(f"| {model} | {method} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _curves(rows: Sequence[OneShotRow]) -> Mapping[tuple[str, str], Mapping[int, list[OneShotRow]]]:
    found: dict[tuple[str, str], dict[int, list[OneShotRow]]] = defaultdict(lambda: defaultdict(list))
    order = list(METHODS)
    for row in sorted(rows, key=lambda row: (row.model, order.index(row.method), row.seed)):
        found[row.model, row.method][row.seed].append(row)
    return found


def draw(rows: Sequence[OneShotRow], path: Path) -> None:
    """Accuracy lost against MACs removed: a panel a network, seed 0; solid with data, dashed without."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    models = sorted({row.model for row in rows})
    with mpl.rc_context({"svg.hashsalt": "rankfold", "font.size": 8}):
        figure, panels = plt.subplots(1, len(models), figsize=(4.6 * len(models), 4), layout="constrained", sharey=True)
        kinds = sorted({method.split(",")[0] for _, method in _curves(rows)})
        colours = {kind: f"C{number}" for number, kind in enumerate(kinds)}
        for model, axes in zip(models, np.atleast_1d(panels), strict=True):
            for (name, method), found in _curves(rows).items():
                curve = sorted(found[min(found)], key=lambda row: -row.macs)
                if name == model:
                    style = "-" if METHODS[method].aware and METHODS[method].refit else "--"
                    axes.plot(
                        [0, *(100 * (1 - row.macs) for row in curve)],
                        [0, *(100 * (row.dense_accuracy - row.accuracy) for row in curve)],
                        style, color=colours[method.split(",")[0]], lw=1, marker=".", ms=3, label=method,
                    )  # fmt: skip
            axes.set(title=model, xlabel="MACs removed, %", ylim=(-0.5, 8), xlim=(0, 60))
            axes.axhline(1, color="#d1d5db", lw=0.8, zorder=0)
            axes.axhline(3, color="#d1d5db", lw=0.8, zorder=0)
            axes.legend(frameon=False, fontsize=6)
        np.atleast_1d(panels)[0].set_ylabel("accuracy lost, points")
        with replacing(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="a table, and the picture beside the rows")
    show.add_argument("results", type=Path)
    show.add_argument("--split", choices=["validation", "test"], default="test")
    make = commands.add_parser("run", help="make and score networks")
    make.add_argument("model", choices=["resnet20", "resnet56"])
    make.add_argument("weights", type=Path)
    make.add_argument("data", type=Path)
    make.add_argument("--results", type=Path, required=True)
    make.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    make.add_argument("--shares", nargs="+", type=float, default=SHARES)
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--split", choices=["validation", "test"], default="test")
    given = parser.parse_args()
    try:
        if given.command == "show":
            rows = [row for row in read(given.results, OneShotRow) if row.split == given.split]
            draw(rows, given.results.with_suffix(".svg"))
            print(markdown(rows))
            return
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(given.model, given.weights, given.data, given.seed, given.split, Path(folder))
            for row in run(bench, [METHODS[name] for name in given.methods], given.shares, given.results):
                lost = row.dense_accuracy - row.accuracy
                print(
                    f"{row.model} {row.method}: {row.macs:.1%} of the MACs, {100 * lost:+.2f} points lost", flush=True
                )
    except RankfoldError as error:
        print(complaint(str(error)), file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
