"""Decompositions: arrays in, `Factors` out. Plain truncated SVD; rank by energy and numerical rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .forms import Form

Array = NDArray[np.floating]

# Weights are float32 whatever precision the SVD runs in: noise of that size in the matrix moves singular
# values by up to this much (Golub & Van Loan, "Matrix Computations", §5.5.8).
_EPSILON = float(np.finfo(np.float32).eps)

# Shares are float64 sums of at most a few thousand terms: their last digits are no reason for another rank.
_SHARE_ROUNDING = 1e-12


@dataclass(frozen=True)
class Factors:
    """Two convolution kernels that replace one: `first` r×i×a×b runs before `second` o×r×c×d.

    On each spatial axis at most one of the two has more than one tap, so that their composition is a
    kernel of a·c × b·d taps, and strides and padding of an axis belong to the factor with the taps.
    """

    first: Array
    second: Array

    def __post_init__(self) -> None:
        for name, kernel in (("first", self.first), ("second", self.second)):
            if kernel.ndim != 4:
                raise ValueError(f"{name} factor: expected 4 dimensions, found {kernel.ndim}")
        if self.first.shape[0] != self.second.shape[1]:
            raise ValueError(f"ranks differ: first {self.first.shape[0]}, second {self.second.shape[1]}")
        for axis in (2, 3):
            if min(self.first.shape[axis], self.second.shape[axis]) != 1:
                raise ValueError(f"both factors have taps on axis {axis}; one of them must have one")

    @property
    def rank(self) -> int:
        """Channels between the two convolutions."""
        return self.first.shape[0]

    def to_dense(self) -> Array:
        """The o×i×h×w kernel that the two convolutions compose to: this is what `Factors` means."""
        _, i, a, b = self.first.shape
        o, _, c, d = self.second.shape
        return np.einsum("riab,orcd->oiacbd", self.first, self.second).reshape(o, i, a * c, b * d)


def singular_values(kernel: Array, form: Form) -> Array:
    """Singular values of the matricised kernel, descending, in float64."""
    return np.linalg.svd(form.matricize(kernel).astype(np.float64), compute_uv=False)


def truncated_svd(kernel: Array, form: Form, rank: int) -> Factors:
    """The best rank-`rank` factors in the Frobenius norm (Eckart & Young 1936), in float64.

    Each factor carries √σ, so that neither is much larger than the other (quantisation and float32 like
    that). Raises ValueError when `rank` is not between 1 and the full rank.
    """
    if not 1 <= rank <= form.full_rank(kernel.shape):
        raise ValueError(f"rank {rank} is not between 1 and the full rank {form.full_rank(kernel.shape)}")
    left, values, right = np.linalg.svd(form.matricize(kernel).astype(np.float64), full_matrices=False)
    root = np.sqrt(values[:rank])
    return Factors(*form.kernels(left[:, :rank] * root, root[:, None] * right[:rank], kernel.shape))


def numerical_rank(values: Array, matrix_shape: Sequence[int]) -> int:
    """Singular values above max(m, n)·eps·σ₁, with the eps of float32, in which weights are stored."""
    if values.size == 0 or values[0] == 0:
        return 0
    return int(np.count_nonzero(values > max(matrix_shape) * _EPSILON * values[0]))


def rank_by_energy(values: Array, energy: float, power: int = 1) -> int:
    """The smallest rank whose singular values hold the share `energy` of Σσ^power; at least 1.

    power 1 is the paper's rule (Alvarez & Salzmann 2017, §3), power 2 the squared Frobenius norm.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"expected an energy in (0, 1], found {energy}")
    return rank_of_share(energy_of_ranks(values, power), energy)


def rank_of_share(shares: Array, energy: float) -> int:
    """The first rank whose share (`energy_of_ranks`) reaches `energy`, but for rounding; at least 1."""
    return min(int(np.searchsorted(shares, energy - _SHARE_ROUNDING)) + 1, max(shares.size, 1))


def energy_of_ranks(values: Array, power: int = 1) -> Array:
    """Share of Σσ^power in the first 1, 2, … singular values; all ones for a zero matrix."""
    sums = np.cumsum(values**power)
    return sums / sums[-1] if sums.size and sums[-1] > 0 else np.ones_like(sums)
