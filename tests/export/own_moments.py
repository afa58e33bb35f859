"""The moments of a layer that sees what the original saw, for laws about decompositions and pruning."""

from __future__ import annotations

import numpy as np

from rankfold.export.aware import Moments
from rankfold.export.decompose import Array


def own_moments(kernel: Array, covariance: Array, mean: Array | None = None, bias: Array | None = None) -> Moments:
    """Moments of a layer that sees what the original saw."""
    flat = kernel.reshape(len(kernel), -1)
    cross = flat @ covariance
    mean_in = np.zeros(flat.shape[1]) if mean is None else mean
    mean_out = flat @ mean_in + (0 if bias is None else bias)
    return Moments(covariance, cross, float(np.vdot(cross, flat)), mean_in, mean_out)
