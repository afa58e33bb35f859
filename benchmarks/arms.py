"""The networks of the ablation: which training each comes from, and its way from random weights to an ONNX file.

    work/TRAINING/                 a training from random weights
    work/TRAINING/SIZE/            dense.onnx, compact.onnx, plan.json: what is made of it without further training
    work/TRAINING/SIZE/FINISH/     the same network fine-tuned, network.onnx
    work/TAUGHT/                   a narrow network that learned from the dense one throughout

All that is there is kept; two processes that need the same training wait for one another.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..export.from_torch import to_onnx
from ..export.shrink import carry_out, prepare_dense, shrink
from ..export.wish import unmeasured
from ..files import digest, locked, replacing_all, sha256_of
from ..records import DistillSpec, Finish, Plan, Recipe, TrainRecord
from ..runtime.costs import count
from ..train import checkpoint
from ..train.data import Dataset
from ..train.models import build
from ..train.planned import planned, start_of
from ..train.recipe import load_recipe
from ..train.trainer import CHECKPOINT, RECORD, Progress, Start, belongs, train
from .remembering import Remembering

Widths = tuple[int, int, int]
Say = Callable[[str, Progress], None]
RECIPE = "chars74k-dec3"
TILE, EVERY = 16, 10  # channels; optimizer steps between proximal steps
HOLD_FROM, ENERGY = 0.6, 0.98  # share of the steps after which, and share of Σσ at which, structure is kept
# Where λ acts was chosen earlier, on the validation split (docs/results.md): the last layers are cheap and need theirs.
GROUP_FACTORS = {"conv2h": 0.4, "conv3v": 0.6, "conv3h": 0.2}
DENSE, NARROW, TAUGHT = "dense", "narrow", "narrow, taught"
SVD, LOW_RANK, GROUPS, BOTH = "post-hoc SVD", "low rank", "groups", "both"
COMPRESSED = (BOTH, LOW_RANK, SVD, GROUPS)
SMALL = ("dense.onnx", "compact.onnx", "plan.json")
NETWORK = "network.onnx"
LOCK = "lock"  # in each folder: one process at a time makes what it is for


@dataclass(frozen=True)
class Training:
    """One training from random weights. `macs` is the share of its MACs at which its structure is kept."""

    widths: Widths
    seed: int
    epochs: int
    low_rank: float = 0.0
    group: float = 0.0
    macs: float | None = None

    @cached_property
    def recipe(self) -> Recipe:
        """What `rankfold train` would be given as a file."""
        changes = [f"model.arguments={{widths={list(self.widths)}}}", f"optimizer.epochs={self.epochs}"]
        if self.low_rank or self.group:
            factors = ", ".join(f"{name} = {factor}" for name, factor in GROUP_FACTORS.items())
            changes += [
                "regularizer.relative=true",
                f"regularizer.every={EVERY}",
                f"regularizer.tile={TILE}",
                f"regularizer.low_rank={self.low_rank}",
                f"regularizer.group={self.group}",
                f"regularizer.group_factors={{{factors}}}",
            ]
        if self.macs is not None:
            changes += [
                f"regularizer.hold_macs={self.macs}",
                f"regularizer.hold_from={HOLD_FROM}",
                f"regularizer.energy={ENERGY}",
            ]
        return load_recipe(RECIPE, changes)

    def folder(self, work: Path) -> Path:
        """Of this training alone."""
        widths = "-".join(map(str, self.widths))
        return work / f"{widths}-{digest(_told(self.recipe))}-{self.seed}"


@dataclass(frozen=True)
class Network:
    """One network of the ablation, with its seed: what is trained, to which size it is cut, how it learns on.

    `share` is of the parameters; `dense` the training whose network teaches; `rate` that of fine-tuning, over
    `fine_epochs`. With `taught` it is not fine-tuned, but learns from the dense network throughout, for as long.
    """

    arm: str
    point: str
    training: Training
    dense: Training
    share: float | None = None
    finish: Finish = "none"
    rate: float = 0.03
    fine_epochs: int = 8
    taught: bool = False

    @property
    def seed(self) -> int:
        """Of all that is drawn by chance."""
        return self.training.seed

    @property
    def epochs(self) -> int:
        """From random weights on."""
        return self.training.epochs + (self.fine_epochs if self.finish != "none" else 0)

    @cached_property
    def fine(self) -> Recipe:
        """How it learns on, or how it is taught."""
        recipe, weight = self.training.recipe, DistillSpec().weight if self.finish == "distilled" else 0.0
        changes = {"epochs": self.epochs} if self.taught else {"epochs": self.fine_epochs, "lr": self.rate}
        optimizer = recipe.optimizer.model_copy(update=changes)
        return planned(recipe.model_copy(update={"optimizer": optimizer, "distill": DistillSpec(weight=weight)}))

    @cached_property
    def config_hash(self) -> str:
        """Twelve hex digits over all that decides what is learned and exported but the seed."""
        told: list[object] = [self.arm, self.dense.widths, _told(self.training.recipe)]
        told += [self.share, TILE, self.finish]
        if self.finish != "none":
            told += [_told(self.fine), _told(self.dense.recipe)]
        return digest(told)

    def size_folder(self, work: Path) -> Path:
        """Of what is made of its training."""
        return self.training.folder(work) / ("whole" if self.share is None else f"parameters-{self.share:g}")

    def file(self, work: Path) -> Path:
        """The ONNX file that is scored and measured."""
        if self.taught:
            return work / f"taught-{self.config_hash}-{self.seed}" / NETWORK
        if self.finish == "none":
            return self.size_folder(work) / "compact.onnx"
        return self.size_folder(work) / f"{self.finish}-{self.config_hash}" / NETWORK


def made(network: Network, data: Dataset, work: Path, say: Say) -> Path:
    """The network's file; what is missing on the way to it is trained and exported."""
    target, plan = network.file(work), Plan(tile=TILE)
    if not network.taught:
        folder = _learned(network.training, data, work, say)
        with locked(network.size_folder(work) / LOCK):
            _cut(network, folder, data, work)
    with locked(target.parent / LOCK):
        if target.exists():
            return target
        if network.taught:
            torch.manual_seed(network.seed)
            student = build(network.training.recipe.model, data.channels, len(data.classes))
        else:
            start = start_of(network.fine, data, network.size_folder(work) / "plan.json", network.training.folder(work))
            student, plan = start.student, start.plan
        _train_on(network, student, plan, data, work, say)
    return target


# --- the steps ----------------------------------------------------------------------------------------------


def _learned(training: Training, data: Dataset, work: Path, say: Say) -> Path:
    """The folder of a finished training."""
    folder = training.folder(work)
    with locked(folder / LOCK):
        if not (folder / RECORD).exists():
            train(
                training.recipe,
                data,
                folder,
                seed=training.seed,
                resume=_is_begun(folder, training.recipe, training.seed),
                on_progress=lambda now: say("training", now),
            )
    return folder


def _cut(network: Network, folder: Path, data: Dataset, work: Path) -> None:
    """SMALL: the trained network as it is exported, cut to a share of its parameters where one is given."""
    target = network.size_folder(work)
    if (target / SMALL[-1]).exists():
        return
    with replacing_all(target, SMALL) as scratch:
        dense, small = scratch / "dense.onnx", scratch / "compact.onnx"
        to_onnx(_module(network.training, folder, data).eval(), _example(data), dense)
        prepare_dense(dense)
        limit = None if network.share is None else int(network.share * count(dense).parameters)
        plan, _ = shrink(dense, small, form="channel", energy=1.0, tile=TILE, parameters=limit)
        plan.write(scratch / "plan.json")


def _train_on(network: Network, student: nn.Module, plan: Plan, data: Dataset, work: Path, say: Say) -> None:
    """Train `student` with the dense network of its seed beside it, and write its file."""
    target, teaching = network.file(work), _learned(network.dense, data, work, say)
    small, taught_by = network.size_folder(work), sha256_of(teaching / CHECKPOINT)
    teacher = Remembering(_module(network.dense, teaching, data), work / f"said-{taught_by[:12]}")
    origin = teaching / CHECKPOINT if network.taught else small / "compact.onnx"
    plain = copy.deepcopy(student).eval()  # training changes the memory layout, which the exporter would write down
    train(
        network.fine,
        data,
        target.parent,
        seed=network.seed,
        start=Start(student, teacher, plan, sha256_of(origin), taught_by),
        resume=_is_begun(target.parent, network.fine, network.seed),
        on_progress=lambda now: say("taught" if network.taught else f"fine-tuned, {network.finish}", now),
    )
    with replacing_all(target.parent, [NETWORK]) as scratch:
        learned = scratch / "learned.onnx"
        plain.load_state_dict(student.state_dict())
        to_onnx(plain, _example(data), learned)
        carry_out(learned, learned if network.taught else small / "dense.onnx", scratch / NETWORK, unmeasured(plan))


def _module(training: Training, folder: Path, data: Dataset) -> nn.Module:
    model = build(training.recipe.model, data.channels, len(data.classes))
    checkpoint.restore(checkpoint.load(folder / CHECKPOINT), model)
    return model


def _example(data: Dataset) -> torch.Tensor:
    return torch.zeros(2, *data.image_shape)


def _is_begun(folder: Path, recipe: Recipe, seed: int) -> bool:
    path = folder / CHECKPOINT
    return path.exists() and belongs(checkpoint.load(path).facts, recipe, seed)


def train_seconds(network: Network, work: Path) -> float:
    """Of its own training, and of fine-tuning."""
    folders = [] if network.taught else [network.training.folder(work)]
    folders += [] if network.finish == "none" else [network.file(work).parent]
    return sum(TrainRecord.read(folder / RECORD).train_s for folder in folders)


def _told(recipe: Recipe) -> dict[str, Any]:
    """A recipe without defaults, so that a key that comes to be later changes no hash."""
    return recipe.model_dump(mode="json", exclude_defaults=True)


# --- which networks there are -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strengths:
    """What is chosen on the validation split: τ alone, λ, τ beside that λ, and the rate of fine-tuning."""

    low_rank: float = 0.005
    group: float = 0.25
    both: float = 0.005
    rate: float = 0.03


@dataclass(frozen=True)
class Family:
    """All networks that are compared with one dense one. Sizes are shares of its parameters, or of its MACs."""

    widths: Widths
    narrow: Sequence[Widths]
    shares: Sequence[float]
    macs: Sequence[float]
    epochs: int = 25
    fine_epochs: int = 8

    def networks(self, found: Strengths, finish: Finish, seed: int) -> list[Network]:
        """All arms at one seed, finished alike; those first that say most."""
        whole = [self.whole(DENSE, self.widths, found, finish, seed)]
        small = [
            self.compressed(arm, size, found, finish, seed) for size in range(len(self.macs)) for arm in COMPRESSED
        ]
        return [*whole, *small, *(self.whole(NARROW, widths, found, finish, seed) for widths in self.narrow)]

    def taught(self, found: Strengths, seed: int) -> list[Network]:
        """The narrower ones, taught throughout."""
        alike = [self.whole(NARROW, widths, found, "distilled", seed) for widths in self.narrow]
        return [replace(network, arm=TAUGHT, taught=True) for network in alike]

    def whole(self, arm: str, widths: Widths, found: Strengths, finish: Finish, seed: int) -> Network:
        """A dense network."""
        training, dense = Training(widths, seed, self.epochs), Training(self.widths, seed, self.epochs)
        return Network(arm, "-".join(map(str, widths)), training, dense, None, finish, found.rate, self.fine_epochs)

    def compressed(self, arm: str, size: int, found: Strengths, finish: Finish, seed: int) -> Network:
        """A small network of an arm, the largest at size 0."""
        dense, share, macs = Training(self.widths, seed, self.epochs), self.shares[size], self.macs[size]
        of_parameters, of_macs = f"{share:g} of the parameters", f"{macs:g} of the MACs"
        training, point, cut = {
            SVD: (dense, of_parameters, share),
            LOW_RANK: (replace(dense, low_rank=found.low_rank), of_parameters, share),
            GROUPS: (replace(dense, group=found.group, macs=macs), of_macs, None),
            BOTH: (replace(dense, group=found.group, low_rank=found.both, macs=macs), of_macs, None),
        }[arm]
        return Network(arm, point, training, dense, cut, finish, found.rate, self.fine_epochs)


HALF = Family(
    widths=(32, 64, 128),
    narrow=((16, 64, 128), (16, 48, 96), (16, 32, 64), (16, 16, 32)),
    shares=(0.6, 0.4, 0.3),
    macs=(0.6, 0.4, 0.25),
)
FULL = Family(
    widths=(64, 128, 256),
    narrow=((32, 64, 128), (16, 64, 128), (16, 48, 96), (16, 32, 64), (16, 16, 32)),
    shares=(0.4, 0.25, 0.15),
    macs=(0.25, 0.12, 0.06),
)
