"""What a recipe prescribes for a training of so many steps: the regularizer, and the guard over it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..records import Recipe
from .data import Dataset
from .guard import PATIENCE, Guard
from .regularizer import CompressionAware

HOLD_FROM = 0.6  # of the steps: when a target is to be met where the recipe does not say
_PATIENCE = 0.05  # of the steps, if that is more than the guard's own patience


def regularizer_of(
    recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, example: Tensor
) -> CompressionAware | None:
    """The recipe's, if it has one; `example` is an input 2×C×H×W."""
    spec = recipe.regularizer
    if spec is None:
        return None
    has_target = any(target is not None for target in (spec.target_macs, spec.target_params, spec.target_latency))
    hold_from = HOLD_FROM if has_target and spec.hold_from == 1 else spec.hold_from
    return CompressionAware(
        model,
        optimizer,
        low_rank=spec.low_rank,
        group=spec.group,
        alpha=spec.alpha,
        form=spec.form,
        every=spec.every,
        solver=spec.solver,
        scale=spec.scale,
        relative=spec.relative,
        groups=spec.groups,
        example_input=example,
        start_at=round(spec.start_at * steps),
        ramp=round(spec.ramp * steps),
        hold_at=round(hold_from * steps) if hold_from < 1 else None,
        hold_macs=spec.hold_macs,
        target_macs=spec.target_macs,
        target_params=spec.target_params,
        target_latency=spec.target_latency,
        tile=spec.tile,
        energy=spec.energy,
        least=spec.least,
        skip=tuple(spec.skip),
        low_rank_factors=spec.low_rank_factors,
        group_factors=spec.group_factors,
        table=spec.table,
        guard=spec.guard,
    )


def guard_of(recipe: Recipe, regularizer: CompressionAware | None, data: Dataset, steps: int) -> Guard | None:
    """The recipe's, whose measure of having learned nothing is the loss of guessing by how frequent classes are."""
    if regularizer is None or recipe.regularizer is None or not recipe.regularizer.guard:
        return None
    smoothing = recipe.optimizer.label_smoothing
    frequencies = np.bincount(data.train.labels, minlength=len(data.classes)) / len(data.train)
    frequencies = (1 - smoothing) * frequencies + smoothing / len(data.classes)
    chance = float(-(frequencies * np.log(np.maximum(frequencies, 1e-12))).sum())
    return Guard(regularizer, chance, max(PATIENCE, round(_PATIENCE * steps)))
