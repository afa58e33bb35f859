"""Numbers below 1e-38 count as zero while one trains: they make CPUs up to a hundred times slower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_DENORMAL = 1e-40


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Flushed within; afterwards the processor is as it was. Also a decorator."""
    was = bool((torch.full((1,), _DENORMAL, dtype=torch.float64).float() * 1.0 == 0).item())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was)
