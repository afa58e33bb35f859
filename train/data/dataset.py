"""Splits of images held as uint8, and their way into the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

SHIFT_PIXELS = 2


@dataclass(frozen=True)
class Split:
    """`images` uint8 N×C×H×W and `labels` int64 N; `first` is the index of its first image in its source."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    first: int = 0

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Three splits that never overlap. Choices are made on `validation`; `test` is looked at once."""

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train.images.shape[1]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        return self.train.images.shape[1:]

    def inputs(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the network sees: (x / 255 - mean) / std, float32 N×C×H×W."""
        mean = np.asarray(self.mean, np.float32).reshape(1, -1, 1, 1)
        std = np.asarray(self.std, np.float32).reshape(1, -1, 1, 1)
        return (images.astype(np.float32) / np.float32(255) - mean) / std


def batch_order(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch's images: a function of seed and epoch alone, so that a resumed run repeats it."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def augment(batch: Tensor, kind: str, seed: Sequence[int]) -> Tensor:
    """Shift each image by up to `SHIFT_PIXELS` (edge repeated), and flip half of them where `kind` says so.

    Random numbers come from `seed` alone: no hidden state that a checkpoint would have to carry.
    """
    if kind == "none":
        return batch
    rng = np.random.default_rng(list(seed))
    if kind == "flip-shift":
        flipped = torch.from_numpy(rng.random(len(batch)) < 0.5).to(batch.device)
        batch = torch.where(flipped[:, None, None, None], batch.flip(3), batch)
    return _shifted(batch, rng.integers(0, 2 * SHIFT_PIXELS + 1, size=(len(batch), 2)))


def _shifted(batch: Tensor, offsets: NDArray[np.int64]) -> Tensor:
    height, width = batch.shape[2:]
    padded = F.pad(batch, (SHIFT_PIXELS,) * 4, mode="replicate")
    rows = torch.from_numpy(offsets[:, :1] + np.arange(height)).to(batch.device)
    columns = torch.from_numpy(offsets[:, 1:] + np.arange(width)).to(batch.device)
    image = torch.arange(len(batch), device=batch.device)
    shifted = padded.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], columns[:, None, :]]
    return shifted.permute(0, 3, 1, 2)
