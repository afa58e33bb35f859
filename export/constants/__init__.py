"""Which numbers of a value are constant whatever the input is: propagated forward, in float64, operator by operator.

What is known of a value is an array of its rank that broadcasts to its shape: the constant, or NaN where it is alive.
A convolution's is 1×o×1×1.

known.py        arrays of constants and NaN, and the questions asked of them
layers.py       convolutions, Gemm, MatMul, norms: sums over constants, padding, scales of zero
elementwise.py  arithmetic on constants, pooling and reductions of them
moves.py        concatenation, slices, transposes, reshapes
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ..graphs import sizes
from . import elementwise, layers, moves
from .known import Channels, Known, Rule, along, is_float

RULES: Mapping[str, Rule] = {**layers.RULES, **elementwise.RULES, **moves.RULES}

__all__ = ["Channels", "Known", "along", "channel_constants", "of"]


def channel_constants(graph: ir.Graph, opset: int) -> Known:
    """What is known of every value of a canonical graph; a value of which nothing is has no entry."""
    known: Known = {}
    for node in graph:
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None or not is_float(node.outputs[0]):
            continue
        with np.errstate(all="ignore"):  # an infinite constant is taken for alive
            found = rule(node, known, opset)
        for output, constants in (found or {}).items():
            finite = np.where(np.isfinite(constants), constants, np.nan)
            if constants.ndim == len(sizes(output)) and not np.isnan(finite).all():
                known[output] = finite
    return known


def of(known: Known, value: ir.Value | None) -> Channels | None:
    """The channels (axis 1) of a value: all alive unless something is known; None if their number is not."""
    return along(known, value, 1)
