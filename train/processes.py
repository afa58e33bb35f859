"""Several processes that train one network together, as torchrun starts them: who does what, what all must agree on.

They hold the same parameters, as DistributedDataParallel keeps them. Without torch.distributed everything here is what
one process does alone. A process that is lost ends the others with one line.
"""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from ..errors import DeviceError

Key = TypeVar("Key", bound=Hashable)
LOST = "another training process was lost; start all of them again, from the last checkpoint (--resume)"


class LostProcess(DeviceError):
    """One of the processes that train together has ended, so this one cannot go on."""


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own() -> int:
    """The number of this one; 0 writes files and speaks."""
    return dist.get_rank() if count() > 1 else 0


def share_out(costs: Mapping[Key, float]) -> dict[Key, int]:
    """The process that does each piece of work: the dearest first, each to the one with least to do."""
    loads = [0.0] * count()
    owners: dict[Key, int] = {}
    for key in sorted(costs, key=lambda one: -costs[one]):
        owners[key] = loads.index(min(loads))
        loads[owners[key]] += costs[key]
    return owners


def spread(tensors: Iterable[Tensor], source: int = 0) -> None:
    """Give contiguous tensors the values that they have in one process; in place, one message a type."""
    if count() == 1:
        return
    alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        alike[tensor.dtype, tensor.device].append(tensor)
    for found in alike.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in found])
        with _named_if_lost():
            dist.broadcast(flat, source)
        for tensor, part in zip(found, flat.split([tensor.numel() for tensor in found]), strict=True):
            tensor.copy_(part.view_as(tensor))


def total(*values: float) -> list[float]:
    """Each value summed over the processes."""
    if count() == 1:
        return list(values)
    summed = torch.tensor(values, dtype=torch.float64, device=_device())
    with _named_if_lost():
        dist.all_reduce(summed)
    return summed.tolist()


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started with this one, if it did; NCCL on GPUs, gloo on CPUs.

    Raises LostProcess within as soon as one of them is lost.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE") == "1":
        yield
        return
    signal.signal(signal.SIGTERM, _end)  # by which torchrun ends the others
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with _named_if_lost():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    except RuntimeError as error:  # of gloo or NCCL under DistributedDataParallel; it has no class of its own
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise LostProcess(LOST) from error
    finally:
        with suppress(RuntimeError):  # where there is nobody to part from
            dist.destroy_process_group()


def _end(*_: object) -> None:
    raise LostProcess(LOST)


@contextmanager
def _named_if_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostProcess(LOST) from error


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
