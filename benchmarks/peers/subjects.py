"""The trained networks that all tools are given: their data, their splits, and how whatever comes of them learns on.

resnet20     published weights, CIFAR-10. Those have seen every training image, so choices are made on the first half
             of the test images and the second half is what is tested once; 45,000 training images are learned from
dec3         recipe chars74k-dec3, Chars74K; the run itself trains it where no checkpoint lies in the work folder
mobilenetv2  in CIFAR's shape, weights drawn by chance: for latency alone, at 0 epochs
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import InputError
from ...export.from_torch import to_onnx
from ...files import digest, locked, replacing, sha256_of
from ...records import DataSpec, DistillSpec, ModelSpec, OptimizerSpec, Plan, Promise, Recipe
from ...runtime.serving import sha256_at
from ...train import checkpoint
from ...train import data as datasets
from ...train.data import Dataset
from ...train.data.dataset import Split
from ...train.models import build
from ...train.models.resnet import ResNet
from ...train.planned import planned
from ...train.recipe import load_recipe
from ...train.trainer import CHECKPOINT, RECORD, Progress, Start, train
from ..oneshot import MEAN, STD, calibration_inputs, cifar, published
from ..remembering import Remembering
from ..slices import sliced
from .mobilenet import mobilenetv2

SEED = 0
QUICK_TRAINED, QUICK_SCORED, QUICK_DEC3 = 2048, 512, "optimizer.epochs=4"  # images of a quick run; how Dec3 is trained
GLANCED_AT = 256  # images
Widths = tuple[int, ...]
Say = Callable[[Progress], None]


def silent(now: Progress) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Places:
    """Files and folders of a run, and whether it is a quick one."""

    weights: Path
    cifar: Path
    chars: Path
    work: Path
    quick: bool = False


class Subject(ABC):
    """One network. `narrower` are widths of dense networks to compare with, on the tile, uniform and not; `is_taught`
    says whether networks are trained from the beginning here: such a one can learn from the dense one throughout, and
    `regularized` gives one that rankfold makes small meanwhile.
    """

    name: ClassVar[str]
    narrower: ClassVar[Sequence[Widths]]
    is_scored: ClassVar[bool] = True
    is_taught: ClassVar[bool] = False

    def __init__(self, places: Places) -> None:
        self.places = places
        self.folder = places.work / (f"{self.name}-quick" if places.quick else self.name)

    @abstractmethod
    def dense(self, say: Say = silent) -> nn.Module:
        """The network with its weights, in evaluation mode; trained now where it must be."""

    @abstractmethod
    def narrow(self, widths: Widths, *, taught: bool = False, say: Say = silent) -> nn.Module:
        """A dense network of these widths, in evaluation mode, as good as it gets without learning on."""

    def regularized(self, changes: Sequence[str], say: Say = silent) -> nn.Module:
        """Trained by rankfold as long as the dense network, with these keys of its recipe: dead filters are zeros."""
        raise InputError(f"{self.name} comes with its weights: nothing is trained from the beginning")

    def teacher(self) -> Remembering:
        """The dense network, for those that learn from it."""
        return Remembering(self.dense(), self.folder / f"said-{self.sha256()[:12]}")

    @abstractmethod
    def recipe(self) -> Recipe:
        """How all learn on: the rate, the batch, what is done to the images."""

    @abstractmethod
    def sha256(self) -> str:
        """Of the file its weights are in."""

    @abstractmethod
    def _loaded(self) -> Dataset: ...

    @cached_property
    def data(self) -> Dataset:
        """All splits; parts of them in a quick run."""
        data = self._loaded()
        if not self.places.quick:
            return data
        return replace(
            data,
            train=cut(data.train, QUICK_TRAINED),
            validation=cut(data.validation, QUICK_SCORED),
            test=cut(data.test, QUICK_SCORED),
        )

    @property
    def for_training(self) -> Dataset:
        """The same with fewer images to be looked at while it learns: nothing is chosen by them."""
        return replace(self.data, validation=cut(self.data.validation, GLANCED_AT))

    @property
    def example(self) -> Tensor:
        """Two images of nothing."""
        return torch.zeros(2, *self.data.image_shape)

    @cached_property
    def identity(self) -> str:
        """Digest over the weights, and the number of images of each split."""
        return digest([self.sha256(), *(len(part) for part in (self.data.train, self.data.validation))])

    def learning(self, epochs: float, weight: float) -> Recipe:
        """The recipe for so many epochs; `weight` is that of distillation."""
        recipe = self.recipe()
        steps = max(1, round(epochs * len(self.data.train) / recipe.optimizer.batch_size))
        optimizer = recipe.optimizer.model_copy(update={"epochs": None, "steps": steps})
        return planned(recipe.model_copy(update={"optimizer": optimizer, "distill": DistillSpec(weight=weight)}))

    def source(self) -> Path:
        """The dense network as torch exports it, BatchNorm nodes and all; written once."""
        path = self.folder / "dense.onnx"
        with locked(self.folder / "dense.lock"):
            if not path.exists():
                to_onnx(self.dense(), self.example, path)
        return path

    def calibration(self) -> Path:
        """Training images as the network sees them, in an npz file by the input's name; written once."""
        path = self.folder / "calibration.npz"
        with locked(self.folder / "calibration.lock"):
            if not path.exists():
                with replacing(path) as temporary, temporary.open("wb") as file:
                    np.savez(file, input=calibration_inputs(self.data, SEED), allow_pickle=False)
        return path


def cut(split: Split, count: int, first: int = 0) -> Split:
    """So many images of a split."""
    part = slice(first, first + count)
    return replace(split, images=split.images[part], labels=split.labels[part], first=split.first + first)


class ResNet20(Subject):
    """The published network; a narrower one is a slice of it."""

    name = "resnet20"
    narrower = ((16, 32, 48), (16, 16, 64), (16, 32, 32), (8, 16, 64), (16, 16, 32), (8, 16, 48), (8, 16, 32))

    @property
    def _file(self) -> Path:
        found = sorted(self.places.weights.glob("resnet20*.th"))
        if not found:
            raise InputError(f"{self.places.weights}: expected resnet20*.th, found none; name the folder it lies in")
        return found[0]

    def dense(self, say: Say = silent) -> nn.Module:
        """As published."""
        return published(self.name, self._file, len(self.data.classes))

    def narrow(self, widths: Widths, *, taught: bool = False, say: Say = silent) -> nn.Module:
        """The strongest channels of its three stages."""
        whole = self.dense()
        assert isinstance(whole, ResNet), "published networks are"
        return sliced(whole, (widths[0], widths[1], widths[2])).eval()

    def recipe(self) -> Recipe:
        """SGD, a cosine, flipped and shifted images."""
        return Recipe(
            about="what became of the published network, trained on",
            model=ModelSpec(name=self.name),
            data=DataSpec(name="npz", validation_share=0.1, mean=MEAN, std=STD, augment="flip-shift"),
            optimizer=OptimizerSpec(lr=0.02, batch_size=128, epochs=1, weight_decay=1e-4),
            promise=Promise(metric="test_accuracy", at_least=0, measured_on="nothing"),
        )

    def sha256(self) -> str:
        """Of the published file."""
        return sha256_at(self._file)

    def _loaded(self) -> Dataset:
        data = cifar(self.places.cifar)
        half = len(data.test) // 2
        return replace(data, validation=cut(data.test, half), test=cut(data.test, len(data.test) - half, half))


class Dec3(Subject):
    """Dec3 at half width, trained here; so is a narrower one, as long, from labels or taught by the dense one."""

    name = "dec3"
    narrower = ((16, 64, 128), (16, 48, 96), (16, 32, 64), (16, 16, 32))
    is_taught = True

    def dense(self, say: Say = silent) -> nn.Module:
        """From its checkpoint, after training where there is none."""
        return self._trained(self._recipe(), self._folder, None, say)

    def narrow(self, widths: Widths, *, taught: bool = False, say: Say = silent) -> nn.Module:
        """Of three pairs."""
        recipe, start = self._recipe(widths), None
        if taught:
            recipe = planned(recipe)
            torch.manual_seed(SEED)
            student, origin = build(recipe.model, self.data.channels, len(self.data.classes)), self.sha256()
            start = Start(student, self.teacher(), Plan(tile=1), origin, origin)
        name = f"narrow-{digest([recipe.model_dump(mode='json'), self.identity])}"
        return self._trained(recipe, self.folder / name, start, say)

    def regularized(self, changes: Sequence[str], say: Say = silent) -> nn.Module:
        """From drawn weights."""
        recipe = self._recipe(changes=changes)
        name = f"regularized-{digest([recipe.model_dump(mode='json'), self.identity])}"
        return self._trained(recipe, self.folder / name, None, say)

    def recipe(self) -> Recipe:
        """The same as it was trained with, at a lower rate."""
        recipe = self._recipe()
        return recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"lr": 0.03})})

    @property
    def _folder(self) -> Path:
        return self.folder / "trained"

    def _recipe(self, widths: Widths | None = None, changes: Sequence[str] = ()) -> Recipe:
        """From drawn weights."""
        narrower = [] if widths is None else [f"model.arguments={{widths={list(widths)}}}"]
        return load_recipe("chars74k-dec3", [*narrower, *changes, *([QUICK_DEC3] if self.places.quick else [])])

    def _trained(self, recipe: Recipe, folder: Path, start: Start | None, say: Say) -> nn.Module:
        """A finished training; one that was killed goes on."""
        with locked(folder / "lock"):
            if not (folder / RECORD).exists():
                train(recipe, self.for_training, folder, seed=SEED, start=start, resume=True, on_progress=say)
        model = build(recipe.model, self.data.channels, len(self.data.classes))
        checkpoint.restore(checkpoint.load(folder / CHECKPOINT), model)
        return model.eval()

    def sha256(self) -> str:
        """Of the checkpoint."""
        self.dense()
        return sha256_of(self._folder / CHECKPOINT)

    def _loaded(self) -> Dataset:
        return datasets.load(self._recipe().data, self.places.chars)


class MobileNetV2(Subject):
    """Drawn weights."""

    name = "mobilenetv2"
    is_scored = False
    narrower = ((16, 16, 32, 64, 96, 160, 320), (16, 16, 32, 48, 64, 112, 224), (16, 16, 16, 32, 48, 80, 160))

    def dense(self, say: Say = silent) -> nn.Module:
        """The same at every call."""
        return mobilenetv2(3, len(self.data.classes), seed=SEED)

    def narrow(self, widths: Widths, *, taught: bool = False, say: Say = silent) -> nn.Module:
        """Of seven stages, drawn too."""
        return mobilenetv2(3, len(self.data.classes), widths, seed=SEED)

    def recipe(self) -> Recipe:
        """It learns nothing."""
        raise InputError("mobilenetv2 has random weights: nothing learns on from them")

    def sha256(self) -> str:
        """Of nothing but their seed."""
        return hashlib.sha256(str(SEED).encode()).hexdigest()

    def _loaded(self) -> Dataset:
        return cifar(self.places.cifar)


SUBJECTS: dict[str, type[Subject]] = {one.name: one for one in (ResNet20, Dec3, MobileNetV2)}
