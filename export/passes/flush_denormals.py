"""Set subnormal weights to zero: each one costs the CPU a slow path (ONNX Runtime issues 5472, 7448, 12959).

Requires: nothing. Ensures: no initialiser holds a number that is subnormal in the type it is computed in:
float32 and float64 in their own, bfloat16 in float32, whose exponents it has. Subnormal float16 numbers are
normal in float32, in which the CPU provider computes, and stay. Exact up to the smallest normal number, 1.2e-38
in float32. Idempotent.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graphs import array, set_array


def flush_denormals(model: ir.Model) -> int:
    """Flush in place; returns how many numbers were flushed."""
    return sum(_flush(value) for value in model.graph.initializers.values())


def count_denormals(value: ir.Value) -> int:
    """Subnormal numbers of one initialiser."""
    numbers = array(value)
    return 0 if numbers is None else int(np.count_nonzero(_subnormal(numbers)))


def _flush(value: ir.Value) -> int:
    numbers = array(value)
    if numbers is None:
        return 0
    subnormal = _subnormal(numbers)
    if subnormal.any():
        set_array(value, np.where(subnormal, np.zeros((), numbers.dtype), numbers).astype(numbers.dtype))
    return int(subnormal.sum())


def _subnormal(numbers: NDArray) -> NDArray[np.bool_]:
    if numbers.dtype.name == "bfloat16":
        numbers = numbers.astype(np.float32)
    if numbers.dtype not in (np.float32, np.float64):
        return np.zeros(numbers.shape, bool)
    return (np.abs(numbers) < np.finfo(numbers.dtype).tiny) & (numbers != 0)
