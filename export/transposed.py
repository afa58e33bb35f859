"""Transposed convolution in float64 for the reference evaluator; onnx's own (1.23) has no groups to speak of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

Array = NDArray[np.float64]


def scatter(x: Array, w: Array, strides: Sequence[int], dilations: Sequence[int], group: int) -> Array:
    """Every input number puts its kernel down; n×c×s and c×(o/g)×k give n×o×((s − 1)·stride + reach)."""
    spatial, taps = x.shape[2:], w.shape[2:]
    reach = [(size - 1) * step + 1 for size, step in zip(taps, dilations, strict=True)]
    full = [(size - 1) * step + over for size, step, over in zip(spatial, strides, reach, strict=True)]
    blocks = x.reshape(len(x), group, -1, *spatial)
    weights = w.reshape(group, -1, *w.shape[1:])
    y = np.zeros((len(x), group, w.shape[1], *full))
    for tap in np.ndindex(*taps):
        starts = [place * step for place, step in zip(tap, dilations, strict=True)]
        ends = [start + (size - 1) * step + 1 for start, size, step in zip(starts, spatial, strides, strict=True)]
        where = tuple(slice(*bounds) for bounds in zip(starts, ends, strides, strict=True))
        y[(slice(None), slice(None), slice(None), *where)] += np.einsum(
            "ngi...,gio->ngo...", blocks, weights[(slice(None), slice(None), slice(None), *tap)]
        )
    return y.reshape(len(x), -1, *full)


class ConvTranspose(OpRun):
    """The sum of all kernels that inputs put down, cropped by the padding."""

    op_domain = ""

    def _run(  # the parameters are the operator's attributes, by name
        self,
        x,
        w,
        b=None,
        auto_pad=None,
        dilations=None,
        group=None,
        kernel_shape=None,
        output_padding=None,
        output_shape=None,
        pads=None,
        strides=None,
    ):
        rank = w.ndim - 2
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        y = scatter(x, w, strides, dilations, group or 1)
        extra = list(output_padding or [0] * rank)
        if output_shape:
            pads = _pads_for(y.shape[2:], extra, output_shape, auto_pad)
        elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            wanted = [size * step for size, step in zip(x.shape[2:], strides, strict=True)]
            pads = _pads_for(y.shape[2:], extra, wanted, auto_pad)
        pads = list(pads or [0] * 2 * rank)
        y = np.pad(y, [(0, 0), (0, 0), *((0, more) for more in extra)])
        cut = tuple(slice(pads[k], y.shape[2 + k] - pads[rank + k]) for k in range(rank))
        y = y[(slice(None), slice(None), *cut)]
        return (y if b is None else y + b.reshape(1, -1, *[1] * rank),)


def _pads_for(full: Sequence[int], extra: Sequence[int], wanted: Sequence[int], auto_pad: str | None) -> list[int]:
    """What must be cut to reach a size (ONNX ConvTranspose-11): the larger half behind for SAME_UPPER, else before."""
    totals = [max(size + more - want, 0) for size, more, want in zip(full, extra, wanted, strict=True)]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return [*small, *large] if auto_pad == "SAME_UPPER" else [*large, *small]
