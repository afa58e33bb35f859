"""Steps of training that are part of a tool, before it makes the network smaller."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from ...train.data import Dataset

BATCH, SEED = 64, 0
AUGMENT = {"resnet20": "flip-shift", "dec3": "shift"}  # as each network learns on afterwards
RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4


def learn(
    model: nn.Module,
    data: Dataset,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    augment: str,
    before_step: Callable[[], None] = lambda: None,
) -> None:
    """Cross-entropy on batches of the training part, in place; the same images in the same order at every call.

    `before_step` is called between the gradients and the optimizer. The model ends in evaluation mode.
    """
    model.train()
    for inputs, labels in data.training(BATCH, augment, SEED, range(steps), torch.device("cpu")):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        before_step()
        optimizer.step()
    model.eval()
