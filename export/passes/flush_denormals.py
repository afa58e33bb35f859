"""Set subnormal weights to zero: each one costs the CPU a slow path (ONNX Runtime issues 5472, 7448, 12959).

Requires: nothing. Ensures: no initialiser holds a subnormal number. Exact up to the smallest normal number,
1.2e-38 in float32. Idempotent.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graphs import array, set_array


def flush_denormals(model: ir.Model) -> int:
    """Flush in place; returns how many numbers were flushed."""
    return sum(_flush(value) for value in model.graph.initializers.values())


def _flush(value: ir.Value) -> int:
    numbers = array(value)
    if numbers is None or numbers.dtype not in (np.float32, np.float64):
        return 0
    subnormal = (np.abs(numbers) < np.finfo(numbers.dtype).tiny) & (numbers != 0)
    if subnormal.any():
        set_array(value, np.where(subnormal, 0, numbers).astype(numbers.dtype))
    return int(subnormal.sum())
