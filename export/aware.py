"""Decompositions that keep a layer's outputs, not its weights: data-aware (design §3).

With y the output of the original layer and x the patch that the layer sees in the compressed network, both about
their means, the best kernel of any rank is W* = E[yxᵀ]·C⁻¹, C = E[xxᵀ], and what a factorisation W̃ adds to its
error is tr((W* − W̃)·C·(W* − W̃)ᵀ). In the channel form and for 1×1 kernels the SVD of W*·C^½ is optimal (Zhang et
al., TPAMI 38(10), 2016, there by generalised SVD); for the others it is where alternating least squares starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np

from .decompose import Array, Factors, channel_bases, composed, svd_sides, tucker2, tucker2_in
from .forms import AnyForm, Form

DAMPING = 1e-4  # of C's mean diagonal: a direction that calibration hardly shows is not free
SWEEPS = 2  # of alternating least squares; the third changes the score by less than 1 % on trained layers
STEPS = 8  # conjugate gradient steps a factor: the score falls with each, there is no need to converge
_ORDER_FREE = ("channel", "linear")


@dataclass(frozen=True)
class Moments:
    """A layer's second moments over calibration data, float64, about the means.

    `covariance` is C, N×N with N = i·h·w in that order; `cross` is E[yxᵀ], o×N; `power` is E‖y‖²; `mean_in` (N) and
    `mean_out` (o, with the layer's bias) are the means themselves.
    """

    covariance: Array
    cross: Array
    power: float
    mean_in: Array
    mean_out: Array

    def score(self, kernel: Array) -> float:
        """E‖y − W̃x‖² / E‖y‖²: the share of the output's variance that is lost."""
        flat = kernel.reshape(len(kernel), -1)
        error = self.power - 2 * np.vdot(flat, self.cross) + np.vdot(flat @ self.covariance, flat)
        return float(max(error, 0.0) / self.power) if self.power > 0 else 0.0

    def bias(self, kernel: Array) -> Array:
        """The bias that keeps the mean output."""
        return self.mean_out - kernel.reshape(len(kernel), -1) @ self.mean_in


def damped(covariance: Array) -> Array:
    """C with `DAMPING` of its mean diagonal added; positive definite."""
    size = len(covariance)
    least = np.trace(covariance) / size
    return covariance + (DAMPING * least if least > 0 else 1.0) * np.eye(size)


def best_kernel(kernel: Array, moments: Moments) -> Array:
    """W*, the kernel of any rank with the least error; `kernel` itself where the data says nothing else."""
    flat = kernel.reshape(len(kernel), -1)
    missing = moments.cross - flat @ moments.covariance
    if not np.any(missing):
        return kernel
    return (flat + np.linalg.solve(damped(moments.covariance), missing.T).T).reshape(kernel.shape)


@dataclass(frozen=True)
class Whitened:
    """A target kernel with the root of its metric, for the decompositions at several ranks of one layer."""

    target: Array
    metric: Array
    root: Array

    @property
    def work(self) -> int:
        """Multiply-accumulates of one pass of the metric over the kernel, the unit of alternating least squares."""
        return self.target.size * len(self.metric)

    def factors(self, form: AnyForm, ranks: Sequence[int], *, improved: bool = True) -> Factors:
        """Factors of the least output error: optimal for the channel form and 1×1 kernels, else a local optimum.

        Without `improved` that is left where alternating least squares starts.
        """
        if isinstance(form, Form) and form.name in _ORDER_FREE:
            return self._optimal(form, *ranks)
        start = self._start(form, ranks)
        return self._improved(start) if improved else start

    @cached_property
    def _sides(self) -> tuple[Array, Array]:
        """Both sides of the whitened SVD, N×n and n×o, each with √σ; the first unwhitened, rows in the order i h w."""
        flat = self.target.reshape(len(self.target), -1)
        left, values, right = np.linalg.svd(flat @ self.root, full_matrices=False)
        scale = np.sqrt(values)
        return np.linalg.solve(self.root.T, right.T) * scale, (left * scale).T

    @cached_property
    def _channel_root(self) -> Array:
        """The root of the mean over the taps of the input channels' metric, i×i."""
        _, i, h, w = self.target.shape
        return np.linalg.cholesky(np.einsum("itjt->ij", self.metric.reshape(i, h * w, i, h * w)) / (h * w))

    @cached_property
    def _plain(self) -> Unweighted:
        """The target with its input channels whitened."""
        return Unweighted(np.einsum("oihw,ij->ojhw", self.target, self._channel_root, optimize=True))

    def _optimal(self, form: Form, rank: int) -> Factors:
        first, second = self._sides
        return Factors(form.kernels(first[:, :rank], second[:rank], self.target.shape))

    def _start(self, form: AnyForm, ranks: Sequence[int]) -> Factors:
        """Plain factors of the kernel with its input channels whitened, as far as that is a kernel again."""
        i, root = self.target.shape[1], self._channel_root
        factors = self._plain.factors(form, ranks)
        first = factors.kernels[0]
        back = np.linalg.solve(root.T, first.transpose(1, 0, 2, 3).reshape(i, -1))
        unwhitened = back.reshape(i, len(first), *first.shape[2:]).transpose(1, 0, 2, 3)
        return Factors((unwhitened, *factors.kernels[1:]))

    def _improved(self, factors: Factors) -> Factors:
        """Alternating least squares over the factors, each by a few conjugate gradient steps."""
        wanted = self._gradient(self.target)
        kernels = list(factors.kernels)
        for _ in range(SWEEPS):
            for index in reversed(range(len(kernels))):
                kernels[index] = self._least_squares(kernels, index, wanted)
        return balanced(Factors(tuple(kernels)))

    def _least_squares(self, kernels: list[Array], index: int, wanted: Array) -> Array:
        def dense(factor: Array) -> Array:
            return reduce(composed, [*kernels[:index], factor, *kernels[index + 1 :]])

        def back(kernel: Array) -> Array:
            return _adjoint(kernel, kernels, index)

        def normal(factor: Array) -> Array:
            return back(self._gradient(dense(factor)))

        return _conjugate_gradient(normal, back(wanted), kernels[index])

    def _gradient(self, kernel: Array) -> Array:
        return (kernel.reshape(len(kernel), -1) @ self.metric).reshape(kernel.shape)


@dataclass(frozen=True)
class Unweighted:
    """A kernel without data: every direction counts alike, the score is the lost share of the squared norm."""

    target: Array

    def factors(self, form: AnyForm, ranks: Sequence[int], *, improved: bool = True) -> Factors:
        """Factors nearest to the kernel: optimal but for tucker-2, which without `improved` is left where its
        iteration starts.
        """
        if isinstance(form, Form):
            left, right = self._sides(form)
            return Factors(form.kernels(left[:, : ranks[0]], right[: ranks[0]], self.target.shape))
        if improved:
            return tucker2(self.target, ranks)
        inner, outer = self._bases
        return tucker2_in(self.target, inner[:, : ranks[0]], outer[:, : ranks[1]])

    def score(self, kernel: Array) -> float:
        """‖W − W̃‖² / ‖W‖²."""
        power = float(np.vdot(self.target, self.target))
        return float(np.square(self.target - kernel).sum()) / power if power > 0 else 0.0

    def _sides(self, form: Form) -> tuple[Array, Array]:
        if form.name not in self._found:
            self._found[form.name] = svd_sides(self.target, form)
        return self._found[form.name]

    @cached_property
    def _found(self) -> dict[str, tuple[Array, Array]]:
        return {}

    @cached_property
    def _bases(self) -> tuple[Array, Array]:
        return channel_bases(self.target.astype(np.float64))


def whitened(kernel: Array, moments: Moments) -> Whitened:
    """The target of a layer, with the root of its damped covariance."""
    metric = damped(moments.covariance)
    return Whitened(best_kernel(kernel, moments), metric, np.linalg.cholesky(metric))


def balanced(factors: Factors) -> Factors:
    """Every factor of the same norm: quantisation and float32 like that."""
    norms = [float(np.linalg.norm(kernel)) or 1.0 for kernel in factors.kernels]
    mean = float(np.exp(np.mean(np.log(norms))))
    return Factors(tuple(kernel * (mean / norm) for kernel, norm in zip(factors.kernels, norms, strict=True)))


def _adjoint(kernel: Array, kernels: list[Array], index: int) -> Array:
    """The derivative of ⟨kernel, composition⟩ by factor `index`."""
    if index:
        before = reduce(composed, kernels[:index])
        kernel = _by_second(kernel, before)
    if index + 1 < len(kernels):
        after = reduce(composed, kernels[index + 1 :])
        kernel = _by_first(kernel, after)
    return kernel


def _by_first(kernel: Array, second: Array) -> Array:
    (o, i, height, width), (_, r, c, d) = kernel.shape, second.shape
    parts = kernel.reshape(o, i, height // c, c, width // d, d).transpose(1, 2, 4, 0, 3, 5)
    flat = parts.reshape(-1, o * c * d) @ second.transpose(0, 2, 3, 1).reshape(-1, r)
    return np.moveaxis(flat.reshape(i, height // c, width // d, r), -1, 0)


def _by_second(kernel: Array, first: Array) -> Array:
    (o, i, height, width), (r, _, a, b) = kernel.shape, first.shape
    parts = kernel.reshape(o, i, a, height // a, b, width // b).transpose(0, 3, 5, 1, 2, 4)
    flat = parts.reshape(-1, i * a * b) @ first.reshape(r, -1).T
    return np.moveaxis(flat.reshape(o, height // a, width // b, r), -1, 1)


def _conjugate_gradient(normal: Callable[[Array], Array], wanted: Array, start: Array) -> Array:
    """A few steps towards normal(x) = wanted; the quadratic never rises (Hestenes & Stiefel 1952)."""
    x = start
    residual = wanted - normal(x)
    direction, power = residual, float(np.vdot(residual, residual))
    for _ in range(STEPS):
        if power <= 0:
            break
        through = normal(direction)
        curvature = float(np.vdot(direction, through))
        if curvature <= 0:
            break
        x = x + (power / curvature) * direction
        residual = residual - (power / curvature) * through
        before, power = power, float(np.vdot(residual, residual))
        direction = residual + (power / before) * direction
    return x
