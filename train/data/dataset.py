"""Splits of images held as uint8, and their way into the network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

SHIFT_PIXELS, PAD_PIXELS = 2, 4
# Which images, and the seed of what is done to them at random; None: nothing is.
Job = tuple[NDArray[np.int64], Sequence[int] | None]


class Stored(Protocol):
    """uint8 N×C×H×W that is not in memory: `train.data.folder`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N, C, H, W."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: slice | NDArray[np.int64]) -> NDArray[np.uint8]: ...

    def stream(self, jobs: Iterable[Job]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Indices and images of each job, in order; images of a job with a seed are augmented already."""
        ...


@dataclass(frozen=True)
class Split:
    """`images` uint8 N×C×H×W, an array or `Stored`, and `labels` int64 N; `first` is the index of its first image in
    its source.
    """

    images: Any
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
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    def training(
        self,
        batch_size: int,
        kind: str,
        seed: int,
        steps: range,
        device: torch.device,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What the network sees in each of these steps: inputs N×C×H×W, augmented by `kind`, and labels N.

        `share` is (k, n): of every batch the images that the k-th of n processes takes.
        """
        labels = torch.from_numpy(self.train.labels).to(device)
        jobs = _jobs(len(labels), batch_size, seed, steps, share)
        if isinstance(self.train.images, np.ndarray):
            images = torch.from_numpy(self.inputs(self.train.images)).to(device)
            for chosen, drawn in jobs:
                index = torch.from_numpy(chosen).to(device)
                yield augment(images[index], kind, drawn), labels[index]
        else:
            given = ((chosen, None if kind == "none" else drawn) for chosen, drawn in jobs)
            for chosen, pixels in self.train.images.stream(given):
                yield self._on_device(pixels, device), labels[torch.from_numpy(chosen).to(device)]

    def batches(self, split: Split, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of a split in order, `size` at a time."""
        labels = torch.from_numpy(split.labels).to(device)
        parts = [slice(start, min(start + size, len(split))) for start in range(0, len(split), size)]
        if isinstance(split.images, np.ndarray):
            images = torch.from_numpy(self.inputs(split.images)).to(device)
            yield from ((images[part], labels[part]) for part in parts)
        else:
            found = split.images.stream((np.arange(part.start, part.stop), None) for part in parts)
            for part, (_, pixels) in zip(parts, found, strict=True):
                yield self._on_device(pixels, device), labels[part]

    def _on_device(self, pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
        """`inputs`, computed there: a quarter of the bytes on the way."""
        mean, std = (torch.tensor(numbers).reshape(1, -1, 1, 1).to(device) for numbers in (self.mean, self.std))
        return (torch.from_numpy(pixels).to(device).float() / 255 - mean) / std

    def inputs(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the network sees: (x / 255 - mean) / std, float32 N×C×H×W."""
        mean = np.asarray(self.mean, np.float32).reshape(1, -1, 1, 1)
        std = np.asarray(self.std, np.float32).reshape(1, -1, 1, 1)
        return (images.astype(np.float32) / np.float32(255) - mean) / std


class Inputs:
    """A split as the network sees it, `Dataset.inputs`, made slice by slice: float32 N×C×H×W."""

    def __init__(self, data: Dataset, split: Split) -> None:
        self._data, self._images = data, split.images
        self.shape = split.images.shape

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        return self._data.inputs(self._images[part])


def _jobs(
    size: int, batch_size: int, seed: int, steps: range, share: tuple[int, int]
) -> Iterator[tuple[NDArray[np.int64], tuple[int, ...]]]:
    """The images of each step, in their epoch's order, and the seed of what is done to them."""
    own, workers = share
    per_epoch, of = math.ceil(size / batch_size), -1
    order = np.empty(0, np.int64)
    for step in steps:
        epoch, position = divmod(step, per_epoch)
        if epoch != of:
            order, of = batch_order(size, seed, epoch), epoch
        together = order[position * batch_size : (position + 1) * batch_size]
        yield together[own::workers], (seed, 1, step, own) if own else (seed, 1, step)


def batch_order(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch's images: a function of seed and epoch alone, so that a resumed run repeats it."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def augment(batch: Tensor, kind: str, seed: Sequence[int]) -> Tensor:
    """Shift each image by up to `SHIFT_PIXELS` (edge repeated), and flip half of them where `kind` says so.

    `pad-crop-flip` pads `PAD_PIXELS` of the mean colour and crops the size back (He et al., CVPR 2016, section 4.2).
    Random numbers come from `seed` alone: no hidden state that a checkpoint would have to carry.
    """
    if kind == "none":
        return batch
    rng = np.random.default_rng(list(seed))
    if kind != "shift":
        flipped = torch.from_numpy(rng.random(len(batch)) < 0.5).to(batch.device)
        batch = torch.where(flipped[:, None, None, None], batch.flip(3), batch)
    pixels, mode = (PAD_PIXELS, "constant") if kind == "pad-crop-flip" else (SHIFT_PIXELS, "replicate")
    return _cropped(
        F.pad(batch, (pixels,) * 4, mode=mode), rng.integers(0, 2 * pixels + 1, size=(len(batch), 2)), pixels
    )


def _cropped(padded: Tensor, offsets: NDArray[np.int64], pixels: int) -> Tensor:
    """Of each image the part that begins at its offset: `pixels` less on every side."""
    height, width = (size - 2 * pixels for size in padded.shape[2:])
    rows = torch.from_numpy(offsets[:, :1] + np.arange(height)).to(padded.device)
    columns = torch.from_numpy(offsets[:, 1:] + np.arange(width)).to(padded.device)
    image = torch.arange(len(padded), device=padded.device)
    cropped = padded.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)
