"""Images in ImageNet's folder layout: train/CLASS/*.jpg and val/CLASS/*.jpg, read when they are needed.

Trained on are random parts of them, resized and flipped (Szegedy et al., CVPR 2015, section 6: 8 to 100 % of the area,
sides of 3:4 to 4:3), each drawn from seed, step and place in the batch alone. Looked at is the centre: 224 of 256 parts
of the shorter side, as `rankfold evaluate --crop 0.875` has it. Processes read ahead, one a core.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from ...errors import InputError
from ...export.calibration import Box, centre, images_in, read_image
from ...records import DataSpec
from .dataset import Dataset, Job, Split

CENTRE = 224 / 256  # of the shorter side
AREA, SIDES, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
AHEAD = 2  # batches that each process has ready
_CHANNELS, _MOST_READERS = 3, 16


class ImageFolder:
    """Files as if they were an array of uint8 N×3×size×size; those that are not asked for are not read."""

    def __init__(self, files: Sequence[Path], size: int) -> None:
        self._files, self._size = list(files), size

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """N, C, H, W."""
        return (len(self._files), _CHANNELS, self._size, self._size)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, chosen: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._read(np.arange(len(self))[chosen], None)

    def stream(self, jobs: Iterable[Job]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Indices and images of each job, in order, read ahead by other processes. InputError names a broken file."""
        readers = min(len(os.sched_getaffinity(0)), _MOST_READERS)
        loader = DataLoader(
            _Jobs(self),
            sampler=jobs,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=readers,
            prefetch_factor=AHEAD,
            generator=torch.Generator(),  # its own: ours decides weights
        )
        for chosen, images in loader:
            if isinstance(images, InputError):
                raise images
            yield chosen, images

    def _read(self, chosen: NDArray[np.int64], drawn: Sequence[int] | None) -> NDArray[np.uint8]:
        images = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        for place, index in enumerate(chosen):
            rng = None if drawn is None else np.random.default_rng([*drawn, place])
            cut = partial(centre, share=CENTRE) if rng is None else partial(random_part, rng)
            pixels = read_image(self._files[index], _CHANNELS, (self._size, self._size), cut)
            images[place] = (pixels[:, ::-1] if rng is not None and rng.random() < 0.5 else pixels).transpose(2, 0, 1)
        return images


class _Jobs(torch.utils.data.Dataset):
    """What the reading processes are given: a job in, its images or what is wrong with one of them out."""

    def __init__(self, folder: ImageFolder) -> None:
        self._folder = folder

    def __getitem__(self, job: Job) -> tuple[NDArray[np.int64], NDArray[np.uint8] | InputError]:
        try:
            return job[0], self._folder._read(*job)
        except InputError as error:  # an exception would come out with the process's traceback in its text
            return job[0], error


def _as_it_is(read: Any) -> Any:
    return read


def random_part(rng: np.random.Generator, size: tuple[int, int]) -> Box:
    """A part of an image of this width and height: left, top, right, bottom; the centre where none fits."""
    width, height = size
    for _ in range(TRIES):
        area = width * height * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(math.log(SIDES[0]), math.log(SIDES[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, height * SIDES[1]), min(height, width / SIDES[0])
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def load_folder(spec: DataSpec, path: Path) -> Dataset:
    """List `path`; the last share of each class of train/, by name, is kept apart for validation, after the others."""
    train, test = (_listed(path / part) for part in ("train", "val"))
    if train.keys() != test.keys():
        odd = sorted(train.keys() ^ test.keys())[0]
        where = "val" if odd in train else "train"
        raise InputError(f"{path / where}: no class folder '{odd}'; train and val must have the same classes")
    kept: list[tuple[Path, int]] = []
    apart: list[tuple[Path, int]] = []
    for label, files in enumerate(train.values()):
        if len(files) < 2:
            raise InputError(f"{files[0].parent}: expected two images or more, one of them for validation")
        split = len(files) - max(1, round(len(files) * spec.validation_share))
        kept += [(file, label) for file in files[:split]]
        apart += [(file, label) for file in files[split:]]
    tested = [(file, label) for label, files in enumerate(test.values()) for file in files]

    def split_of(found: Sequence[tuple[Path, int]], first: int = 0) -> Split:
        labels = np.array([label for _, label in found], np.int64)
        return Split(ImageFolder([file for file, _ in found], spec.size), labels, first)

    return Dataset(
        name=path.name,
        classes=tuple(train),
        train=split_of(kept),
        validation=split_of(apart, len(kept)),
        test=split_of(tested),
        mean=tuple(spec.mean),
        std=tuple(spec.std),
    )


def _listed(folder: Path) -> dict[str, list[Path]]:
    """Images by class, both in the order of names; a class without images is an error."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
        found = {name: images_in(folder / name) for name in names}
    except OSError as error:
        raise InputError(
            f"cannot read {folder}: {error.strerror}; expected train/CLASS/*.jpg, val/CLASS/*.jpg"
        ) from error
    empty = next((name for name, files in found.items() if not files), None)
    if not found or empty is not None:
        raise InputError(f"{folder / (empty or '')}: expected images in a folder a class, found none")
    return found
