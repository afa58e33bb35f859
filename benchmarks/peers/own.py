"""The tools that need nothing installed: rankfold itself, narrower dense networks, plain SVD, ONNX Runtime's int8."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from ...devices import probe
from ...devices.local import LocalTransport
from ...export.budget import Budget
from ...export.calibration import Preprocess, first
from ...export.compress import Job
from ...export.from_torch import to_onnx
from ...export.quantize import Int8, needs_reduced_range, quantize_into
from ...export.reporting import Report
from ...export.reporting import silent as unreported
from ...export.shrink import carry_out, prepare_dense, shrink
from ...export.wish import AUTO_FORMS, Wish, unmeasured
from ...records import Facts, Plan
from ...train.batchnorm import settle
from ...train.compact import compact
from ...train.data import Dataset
from ..command import stopwatch_here
from ..networks import load_spec
from ..oneshot import CALIBRATION
from .points import MODEL, Point
from .subjects import Say, Subject, silent
from .tools import Setting, Tool

RANKFOLD, DENSE, INT8, NARROW, ENERGY = "rankfold", "dense", "ORT int8", "narrower dense", "plain SVD by energy"
PLAN = "model.plan.json"
FOR_INT8 = "rankfold, planned for int8"
OURS = (RANKFOLD, FOR_INT8)
BUDGETS = (0.8, 0.75, 0.7, 0.65, 0.5, 0.4)  # shares of the dense network's time
PLAIN_BUDGET = 0.65  # the one that is planned without narrower layers as well
INT8_BUDGETS = (0.9, 0.85, 0.8)  # of what it takes in int8
SMALL = ("compact", "compact-low-rank")  # of the comparison "chars74k": recipes that train Dec3 small
ENERGIES, TILES = (0.98, 0.95, 0.9, 0.8, 0.7, 0.65, 0.6, 0.5), (1, 16)
FORMS = {"resnet20": ("channel", "spatial"), "dec3": ("channel",), "mobilenetv2": ("linear",)}
CALIBRATED = (128, 512)  # images
_SETTLED, _BATCH = 1024, 128


@cache
def here() -> Facts:
    """This machine."""
    with LocalTransport().launch() as process:
        return probe.facts(process)


@dataclass(frozen=True)
class Dense:
    """The network itself: what all are compared with."""

    subject: Subject
    name: str = DENSE
    lines: int = 0
    example: str = "torch.onnx.export, then onnxsim"
    missing: str | None = None

    def settings(self, network: str, quick: bool) -> Sequence[Setting]:
        """One."""
        return [Setting(self.name, "as it is")]

    def apply_file(self, source: Path, target: Path, setting: Setting, data: Dataset) -> None:
        """Its BatchNorm folded, as every other's."""
        prepare_dense(source, target)


@dataclass(frozen=True)
class Narrow:
    """A dense network of other widths: cut out of a published one, or trained as long as the dense one was."""

    subject: Subject
    say: Say = silent
    name: str = NARROW
    lines: int = 1
    example: str = "benchmarks/slices.py cuts ResNets; --set model.arguments={widths=[…]} trains others"
    missing: str | None = None

    def settings(self, network: str, quick: bool) -> Sequence[Setting]:
        """Widths on the tile, uniform and not; where it trains, from labels and taught by the dense one."""
        ways = (False, True) if self.subject.is_taught and not quick else (False,)
        widths = self.subject.narrower[-2:-1] if quick else self.subject.narrower
        return [
            Setting(
                self.name,
                "-".join(map(str, one)) + (", taught" if taught else ""),
                {"widths": list(one), "taught": taught},
            )
            for one, taught in itertools.product(widths, ways)
        ]

    def apply(self, model: nn.Module, example: Tensor, setting: Setting, data: Dataset) -> nn.Module:
        """The narrower network."""
        return self.subject.narrow(tuple(setting.arguments["widths"]), taught=setting.arguments["taught"], say=self.say)


@dataclass(frozen=True)
class Planned:
    """A file with a plan beside it: the module is made by the plan, and what it learned is written as planned."""

    subject: Subject

    def apply(self, model: nn.Module, example: Tensor, setting: Setting, data: Dataset) -> nn.Module:
        """As `rankfold train --plan` begins."""
        folder = Point(setting).folder(self.subject)
        some = data.train.images[:: max(1, len(data.train) // _SETTLED)]
        inputs = torch.from_numpy(data.inputs(some))
        made = compact(model, folder / MODEL, Plan.read(folder / PLAN), inputs[:8])
        settle(made, inputs.split(_BATCH))
        return made

    def export(self, module: nn.Module, example: Tensor, setting: Setting, target: Path) -> None:
        """With the plan's exact rewrites."""
        plan = Plan.read(Point(setting).folder(self.subject) / PLAN)
        with TemporaryDirectory(prefix="rankfold-") as folder:
            learned = Path(folder) / "learned.onnx"
            to_onnx(module, example, learned)
            carry_out(learned, self.subject.source(), target, unmeasured(plan))


@dataclass(frozen=True)
class Rankfold(Planned):
    """`rankfold compress` by measured time, then `rankfold train --plan`; where networks are trained from the beginning
    here, `rankfold train` with a regularizer too. And `rankfold quantize --timed`.
    """

    say: Say = silent
    report: Report = unreported
    name: str = RANKFOLD
    lines: int = 2
    example: str = (
        "docs/deploying.md: rankfold compress dense.onnx -o model.onnx --budget 0.5 --widths --data calibration.npz; "
        "docs/training.md: rankfold train, with what benchmarks/chars74k.toml sets for its compact networks"
    )
    missing: str | None = None

    def settings(self, network: str, quick: bool) -> Sequence[Setting]:
        """Budgets of time, with narrower layers and without; a quick run has one form, and few images."""
        if quick:
            few = {"budget": 0.7, "widths": False, "forms": [FORMS[network][-1]], "most": 64, "pairs": 2}
            return [Setting(self.name, "budget 0.7, one form", few, is_alone=True)]
        some = BUDGETS if self.subject.is_scored else (PLAIN_BUDGET,)
        wanted = [*((share, True) for share in some), (PLAIN_BUDGET, False)]
        budgets = [
            Setting(
                self.name,
                f"budget {share:g}{', widths' if widths else ''}",
                {"budget": share, "widths": widths, "forms": list(AUTO_FORMS), "most": CALIBRATION, "pairs": None},
                is_alone=True,
            )
            for share, widths in wanted
        ]
        if not self.subject.is_taught:
            return budgets
        variants = {variant.name: variant for variant in load_spec("chars74k").variants}
        return budgets + [Setting(self.name, f"trained, {name}", {"changes": variants[name].changes}) for name in SMALL]

    def apply(self, model: nn.Module, example: Tensor, setting: Setting, data: Dataset) -> nn.Module:
        """By the plan, of the dense network or of the one that was trained to be small."""
        return super().apply(
            self._trained(setting) if "changes" in setting.arguments else model, example, setting, data
        )

    def apply_file(self, source: Path, target: Path, setting: Setting, data: Dataset) -> None:
        """`target`, its plan beside it, or in int8."""
        if "int8" in setting.arguments:
            self._quantize(source, target, setting)
        elif "changes" in setting.arguments:
            self._fold(target, setting)
        else:
            self._compress(source, target, setting)

    def _trained(self, setting: Setting) -> nn.Module:
        return self.subject.regularized(setting.arguments["changes"], self.say)

    def _fold(self, target: Path, setting: Setting) -> None:
        with TemporaryDirectory(prefix="rankfold-") as folder:
            dense = Path(folder) / "dense.onnx"
            to_onnx(self._trained(setting), self.subject.example, dense)
            prepare_dense(dense)
            plan, _ = shrink(dense, target, form="channel", energy=1.0, tile=here().tile)
        plan.write(target.with_name(PLAN))

    def _quantize(self, source: Path, target: Path, setting: Setting) -> None:
        int8 = Int8(setting.arguments["reduce_range"], watch=stopwatch_here())
        _in_int8(self.subject, source, target, setting, int8, self.report)

    def _compress(self, source: Path, target: Path, setting: Setting) -> None:
        """What was timed for one budget is not timed again for the next."""
        watch, asked = stopwatch_here(table=self.subject.folder / "latency.sqlite"), setting.arguments
        watch = replace(watch, options=replace(watch.options, pairs=asked["pairs"]))
        budget = Budget(share=asked["budget"])
        wish = Wish(asked["forms"], time=budget, widths=asked["widths"], tile=watch.facts.tile)
        int8 = Int8(asked["reduce_range"]) if "reduce_range" in asked else None
        data = self.subject.calibration()
        job = Job(wish, data=data, most=asked["most"], watch=watch, report=self.report, int8=int8)
        job.into(target.parent, source, target.name)


@dataclass(frozen=True)
class RankfoldForInt8(Rankfold):
    """`rankfold compress --int8`, whose budgets are of int8's time; the rest as of the other."""

    name: str = FOR_INT8
    example: str = (
        "docs/deploying.md#int8: rankfold compress dense.onnx -o model.onnx --budget 0.9 --widths --int8 "
        "--data calibration.npz; then as rankfold's"
    )

    def settings(self, network: str, quick: bool) -> Sequence[Setting]:
        """Budgets, with narrower layers; none in a quick run."""
        if quick:
            return []
        budgets = INT8_BUDGETS if self.subject.is_scored else INT8_BUDGETS[:1]
        how = {"widths": True, "forms": list(AUTO_FORMS), "most": CALIBRATION, "pairs": None}
        how |= {"reduce_range": needs_reduced_range(here().isa)}
        return [
            Setting(self.name, f"budget {share:g}, widths", {"budget": share, **how}, is_alone=True)
            for share in budgets
        ]


@dataclass(frozen=True)
class EnergySvd(Planned):
    """Every layer cut at the same share of Σσ, where that saves MACs."""

    name: str = ENERGY
    lines: int = 25
    example: str = "torch.linalg.svd of every kernel, two layers for one: the textbook's"
    missing: str | None = None

    def settings(self, network: str, quick: bool) -> Sequence[Setting]:
        """Forms, energies, and ranks as they fall or on the tile."""
        forms, energies, tiles = FORMS[network], ENERGIES, TILES
        if quick:
            forms, energies, tiles = forms[-1:], (0.8,), TILES[-1:]
        return [
            Setting(
                self.name,
                f"{form}, {energy:.0%}, tile {tile}",
                {"form": form, "energy": energy, "tile": tile},
            )
            for form, energy, tile in itertools.product(forms, energies, tiles)
        ]

    def apply_file(self, source: Path, target: Path, setting: Setting, data: Dataset) -> None:
        """`target`, its plan beside it."""
        plan, _ = shrink(source, target, **setting.arguments)
        plan.write(target.with_name(PLAN))


@dataclass(frozen=True)
class OrtInt8:
    """Static int8 by ONNX Runtime's own tool."""

    subject: Subject
    name: str = INT8
    lines: int = 12
    example: str = "onnxruntime.ai, Quantize ONNX Models: quantize_static; rankfold quantize does it in one"
    missing: str | None = None

    def settings(self, network: str, quick: bool) -> Sequence[Setting]:
        """How many images the ranges come from, and whether weights keep 7 bits where the CPU needs it."""
        bits = (True, False) if needs_reduced_range(here().isa) else (False,)
        return [
            Setting(
                self.name,
                f"{7 if reduced else 8} bits, {most} images",
                {"reduce_range": reduced, "most": most},
            )
            for reduced, most in list(itertools.product(bits, CALIBRATED))[: 1 if quick else None]
        ]

    def apply_file(self, source: Path, target: Path, setting: Setting, data: Dataset) -> None:
        """The file and its records."""
        _in_int8(self.subject, source, target, setting, Int8(setting.arguments["reduce_range"]))


def _in_int8(
    subject: Subject, source: Path, target: Path, setting: Setting, int8: Int8, report: Report = unreported
) -> None:
    quantize_into(
        target.parent,
        source,
        target.name,
        samples_for=partial(first, subject.calibration(), setting.arguments["most"], Preprocess()),
        int8=int8,
        tile=here().tile,
        report=report,
    )


def quantised() -> Setting:
    """`rankfold quantize --timed`, at its defaults here."""
    how = {"int8": "timed", "reduce_range": needs_reduced_range(here().isa), "most": CALIBRATION}
    return Setting(RANKFOLD, "quantize --timed", how, is_alone=True)


OWN = (Dense, Rankfold, RankfoldForInt8, Narrow, EnergySvd, OrtInt8)


def own(subject: Subject, say: Say = silent, report: Report = unreported) -> list[Tool]:
    """All of them, the dense network first."""
    ours = [Rankfold(subject, say, report), RankfoldForInt8(subject, say, report)]
    return [Dense(subject), *ours, Narrow(subject, say), EnergySvd(subject), OrtInt8(subject)]
