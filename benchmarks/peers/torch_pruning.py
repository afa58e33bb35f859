"""Torch-Pruning (Fang et al., CVPR 2023): whole channels by the norms of coupled groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckFailed
from ...train.data import Dataset
from .installed import library, missing, quiet
from .learning import AUGMENT, MOMENTUM, RATE, WEIGHT_DECAY, learn
from .tools import ModuleTool, Setting

RATIOS, ROUND_TO = (0.15, 0.2, 0.25, 0.3, 0.45, 0.6), (None, 8, 16)
SPARSE_RATIOS, SPARSE_ROUND_TO = (0.3, 0.5), (None, 16)
REGULARIZED, STEPS = (1e-3, 1e-2), 200  # strengths; batches of sparse training
QUICK_STEPS = 20


@dataclass(frozen=True)
class Magnitude:
    """The README's own pruner: L2 norms of groups, layer by layer or all layers in one ranking."""

    name: str = "Torch-Pruning, magnitude"
    lines: int = 7
    example: str = (
        "README, High-level Pruners: tp.pruner.BasePruner(model, example_inputs, importance="
        "tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=0.5, ignored_layers=[model.fc], round_to=8).step()"
        "; Global Pruning and Isomorphic Pruning: global_pruning=True, isomorphic=True"
    )

    @property
    def missing(self) -> str | None:
        """Where it is not installed."""
        return missing("torch_pruning")

    def settings(self, network: str, quick: bool) -> Sequence[Setting]:
        """Ratios, rounded and not, local and global."""
        if quick:
            return [self._setting(0.3, 8, False)]
        return [self._setting(*one) for one in product(RATIOS, ROUND_TO, (False, True))]

    def _setting(self, ratio: float, round_to: int | None, everywhere: bool) -> Setting:
        ranking = {"global_pruning": True, "isomorphic": True} if everywhere else {}
        return Setting(
            self.name,
            f"{_told(ratio, round_to)}{', global' if everywhere else ''}",
            {"pruning_ratio": ratio, "round_to": round_to, **ranking},
        )

    def apply(self, model: nn.Module, example: Tensor, setting: Setting, data: Dataset) -> nn.Module:
        """The README's calls."""
        return by_magnitude(model, example, **setting.arguments)


@dataclass(frozen=True)
class GroupNorm:
    """Groups shrunk while it trains, each by its rank in its layer, then pruned by their norms."""

    name: str = "Torch-Pruning, group norm"
    lines: int = 9
    example: str = (
        "README, Sparse Training: pruner = tp.pruner.GroupNormPruner(model, example_inputs, importance=imp, "
        "pruning_ratio=0.5, reg=…); pruner.update_regularizer() before each epoch, pruner.regularize(model) between "
        "loss.backward() and optimizer.step(), then pruner.step()"
    )

    @property
    def missing(self) -> str | None:
        """Where it is not installed."""
        return missing("torch_pruning")

    def settings(self, network: str, quick: bool) -> Sequence[Setting]:
        """Strengths, ratios, rounded and not; without training it is the other one, so only where there are labels."""
        if network not in AUGMENT:
            return []
        points = [(REGULARIZED[0], 0.3, 16)] if quick else list(product(REGULARIZED, SPARSE_RATIOS, SPARSE_ROUND_TO))
        return [
            Setting(
                self.name,
                f"{_told(ratio, round_to)}, strength {reg:g}",
                {
                    "pruning_ratio": ratio,
                    "round_to": round_to,
                    "reg": reg,
                    "steps": QUICK_STEPS if quick else STEPS,
                    "augment": AUGMENT[network],
                },
            )
            for reg, ratio, round_to in points
        ]

    def apply(self, model: nn.Module, example: Tensor, setting: Setting, data: Dataset) -> nn.Module:
        """Sparse training, which is beside the budget of fine-tuning, then one step of pruning."""
        given = dict(setting.arguments)
        steps, augment = given.pop("steps"), given.pop("augment")
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        with quiet():
            pruner = library("torch_pruning").pruner.GroupNormPruner(model, example[:1], **_common(model), **given)
            pruner.update_regularizer()
            shrink = partial(pruner.regularize, model)
            learn(model, data, optimizer, steps=steps, augment=augment, before_step=shrink)
            return _pruned(model, pruner, example)


def by_magnitude(model: nn.Module, example: Tensor, **given: Any) -> nn.Module:
    """`model` made smaller in place, with these arguments of the pruner beside the README's own."""
    with quiet():
        pruner = library("torch_pruning").pruner.BasePruner(model, example[:1], **_common(model), **given)
        return _pruned(model, pruner, example)


def _told(ratio: float, round_to: int | None) -> str:
    return f"ratio {ratio:g}" + (f", round_to {round_to}" if round_to else "")


def _common(model: nn.Module) -> dict[str, Any]:
    """What the README gives every pruner: group norms, and the classifier left alone."""
    importance = library("torch_pruning").importance.GroupMagnitudeImportance(p=2)
    classifier = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    # its defaults for these two are one dictionary for all models, which it writes to
    return {
        "importance": importance,
        "ignored_layers": classifier,
        "in_channel_groups": {},
        "out_channel_groups": {},
    }


def _pruned(model: nn.Module, pruner: Any, example: Tensor) -> nn.Module:
    """One step, and whether what is left still runs."""
    try:
        pruner.step()
        with torch.no_grad():
            model(example)
    except RuntimeError as error:
        raise CheckFailed(f"what Torch-Pruning left does not run: {str(error).splitlines()[0]}") from error
    model.zero_grad()
    return model


TOOLS: Sequence[ModuleTool] = (Magnitude(), GroupNorm())
