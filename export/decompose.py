"""Decompositions: arrays in, `Factors` out. Truncated SVD and Tucker-2; rank by energy and numerical rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .forms import AnyForm, Form

Array = NDArray[np.floating]

# Weights are float32 whatever precision the SVD runs in: noise of that size in the matrix moves singular
# values by up to this much (Golub & Van Loan, "Matrix Computations", §5.5.8).
_EPSILON = float(np.finfo(np.float32).eps)

# Shares are float64 sums of at most a few thousand terms: their last digits are no reason for another rank.
_SHARE_ROUNDING = 1e-12
HOOI_SWEEPS = 5  # on trained kernels the error falls by less than 0.1 % after the third


@dataclass(frozen=True)
class Factors:
    """Convolution kernels that replace one, in the order they run: r₁×i×…, …, o×rₙ×….

    On each spatial axis at most one of two neighbours has more than one tap, so that their composition is a
    kernel with the product of their taps, and strides and padding of an axis belong to the factor with the taps.
    """

    kernels: tuple[Array, ...]

    def __post_init__(self) -> None:
        if len(self.kernels) < 2:
            raise ValueError(f"expected at least two factors, found {len(self.kernels)}")
        for number, kernel in enumerate(self.kernels, 1):
            if kernel.ndim != 4:
                raise ValueError(f"factor {number}: expected 4 dimensions, found {kernel.ndim}")
        for number, (one, two) in enumerate(pairwise(self.kernels), 1):
            if one.shape[0] != two.shape[1]:
                raise ValueError(f"ranks differ: factor {number} {one.shape[0]}, factor {number + 1} {two.shape[1]}")
            for axis in (2, 3):
                if min(one.shape[axis], two.shape[axis]) != 1:
                    raise ValueError(f"both factors have taps on axis {axis}; one of them must have one")

    @property
    def ranks(self) -> list[int]:
        """Channels between the convolutions."""
        return [kernel.shape[0] for kernel in self.kernels[:-1]]

    def to_dense(self) -> Array:
        """The o×i×h×w kernel that the convolutions compose to: this is what `Factors` means."""
        return reduce(composed, self.kernels)


def composed(first: Array, second: Array) -> Array:
    """The kernel of `first` (r×i×a×b) followed by `second` (o×r×c×d): o×i×ac×bd."""
    (r, i, a, b), (o, _, c, d) = first.shape, second.shape
    product = second.transpose(0, 2, 3, 1).reshape(-1, r) @ first.reshape(r, -1)
    return product.reshape(o, c, d, i, a, b).transpose(0, 3, 4, 1, 5, 2).reshape(o, i, a * c, b * d)


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
    left, right = svd_sides(kernel, form)
    return Factors(form.kernels(left[:, :rank], right[:rank], kernel.shape))


def svd_sides(kernel: Array, form: Form) -> tuple[Array, Array]:
    """U√Σ and √Σ·Vᵀ of the matricised kernel: their first columns and rows are the truncated SVD of any rank."""
    left, values, right = np.linalg.svd(form.matricize(kernel).astype(np.float64), full_matrices=False)
    root = np.sqrt(values)
    return left * root, root[:, None] * right


def plain_factors(kernel: Array, form: AnyForm, ranks: Sequence[int]) -> Factors:
    """The factors nearest to the kernel itself: truncated SVD, for tucker-2 HOOI."""
    return truncated_svd(kernel, form, *ranks) if isinstance(form, Form) else tucker2(kernel, ranks)


def truncated(factors: Factors, ranks: Sequence[int]) -> Factors:
    """The same convolutions with fewer channels between them, near what they compose to, in float64.

    A kernel r'×r×a×b is the core r × ab × r' of a tensor train, and this is its rounding (Oseledets 2011, algorithm 2):
    QR from the last to the first, truncated SVD back. Two factors are the SVD of their product (Eckart & Young 1936),
    n err by at most √(n − 1) times the least. Ranks that the product cannot have are cut. Raises ValueError for others
    than 1 to those there are.
    """
    if len(ranks) != len(factors.ranks) or not all(
        1 <= new <= old for new, old in zip(ranks, factors.ranks, strict=True)
    ):
        raise ValueError(f"expected ranks from 1 to {factors.ranks}, found {list(ranks)}")
    cores = [kernel.astype(np.float64).transpose(1, 2, 3, 0) for kernel in factors.kernels]
    for at in range(len(cores) - 1, 0, -1):
        basis, rest = np.linalg.qr(cores[at].reshape(len(cores[at]), -1).T)
        cores[at] = basis.T.reshape(-1, *cores[at].shape[1:])
        cores[at - 1] = cores[at - 1] @ rest.T
    roots = []
    for at, rank in enumerate(ranks):
        left, values, right = np.linalg.svd(cores[at].reshape(-1, cores[at].shape[-1]), full_matrices=False)
        cores[at] = left[:, :rank].reshape(*cores[at].shape[:-1], -1)
        cores[at + 1] = np.tensordot(values[:rank, None] * right[:rank], cores[at + 1], 1)
        roots.append(np.sqrt(np.where(values[:rank] > 0, values[:rank], 1)))
    for at, root in enumerate(roots):  # both sides carry √σ, as in `truncated_svd`
        cores[at] = cores[at] * root
        cores[at + 1] = cores[at + 1] / root[:, None, None, None]
    return Factors(tuple(core.transpose(3, 0, 1, 2) for core in cores))


def tucker2(kernel: Array, ranks: Sequence[int], sweeps: int = HOOI_SWEEPS) -> Factors:
    """1×1 i→r₁, h×w r₁→r₂, 1×1 r₂→o by higher-order orthogonal iteration (De Lathauwer et al. 2000), in float64.

    The error falls with every sweep; unlike the SVD's it is a local optimum. Raises ValueError for ranks beyond
    the channels.
    """
    (o, i), (into, out) = kernel.shape[:2], ranks
    if not (1 <= into <= i and 1 <= out <= o):
        raise ValueError(f"ranks {into}, {out} are not between 1 and the channels {i}, {o}")
    full = kernel.astype(np.float64)
    inner, outer = (basis[:, :rank] for basis, rank in zip(channel_bases(full), ranks, strict=True))
    for _ in range(sweeps):
        inner = _basis(np.einsum("oihw,op->ihwp", full, outer, optimize=True).reshape(i, -1))[:, :into]
        outer = _basis(np.einsum("oihw,ip->ohwp", full, inner, optimize=True).reshape(o, -1))[:, :out]
    return tucker2_in(full, inner, outer)


def channel_bases(kernel: Array) -> tuple[Array, Array]:
    """Of the input and of the output channels, i×i and o×o, most important first: the higher-order SVD's bases."""
    o, i = kernel.shape[:2]
    return _basis(kernel.transpose(1, 0, 2, 3).reshape(i, -1)), _basis(kernel.reshape(o, -1))


def tucker2_in(kernel: Array, inner: Array, outer: Array) -> Factors:
    """Tucker-2 with given orthonormal bases, i×r₁ and o×r₂."""
    core = np.einsum("oihw,ip,oq->qphw", kernel, inner, outer, optimize=True)
    return Factors((inner.T[..., None, None], core, outer[..., None, None]))


def _basis(matrix: Array) -> Array:
    """The left singular vectors, those of the largest singular values first, from the Gram matrix, which is small."""
    return np.linalg.eigh(matrix @ matrix.T)[1][:, ::-1]


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
