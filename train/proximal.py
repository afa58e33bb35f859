"""The proximal operators of compression-aware training: free functions on tensors that return new values.

Alvarez & Salzmann, "Compression-aware Training of Deep Networks", NIPS 2017; singular value thresholding is
Cai, Candès & Shen, SIAM J. Optim. 20(4), 2010; the sparse group lasso step is Simon et al., JCGS 22(2), 2013.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from ..errors import RankfoldError
from ..records import Solver


class DivergedError(RankfoldError):
    """A weight became infinite or NaN."""

    exit_code = 1


SOLVERS: tuple[Solver, ...] = get_args(Solver)
_ITERATIONS = 24  # of Newton and Schulz: eigenvalues grow 2.25-fold in each, 10⁻⁷ of the largest comes to 1 in 20


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD (U, σ, Vᵀ) of …×m×n matrices, σ descending.

    CUDA's solvers can fail to converge on nearly rank-deficient matrices; then the CPU's does it.
    """
    _require_finite(matrix)
    left, values, right = _on_cpu_if_need_be(partial(torch.linalg.svd, full_matrices=False), matrix)
    return left, values, right


def singular_values(matrix: Tensor) -> Tensor:
    """σ of …×m×n matrices, descending, …×min(m, n), float64. Those of float32 and less are square roots of the Gram
    matrix's eigenvalues in float64: 10⁻⁸ of the largest is the least that shows, below what float32 resolves.
    """
    if matrix.dtype == torch.float64:
        return svd(matrix)[1]
    (eigenvalues,) = _on_cpu_if_need_be(lambda gram: (torch.linalg.eigvalsh(gram),), _gram(_wide(matrix)))
    return _roots(eigenvalues).flip(-1)


def nuclear_norm_prox(
    matrix: Tensor, threshold: float | Tensor, exempt: int = 0, *, relative: bool = False, solver: Solver = "gram"
) -> Tensor:
    """argmin_X ½‖X − matrix‖² + threshold·‖X‖_*: every singular value falls by `threshold`, not below 0.

    Of …×m×n matrices, each with its own threshold (…) or all with one; `relative` thresholds are shares of σ₁. With
    `exempt` the largest singular values stay: the truncated nuclear norm (Hu et al., TPAMI 35(9), 2013).

    solver  'gram': by the eigenvectors of the smaller Gram matrix in float64, as exact as a float32 SVD and faster;
            float64 takes the SVD. 'svd': by an SVD. 'newton-schulz': by matrix products alone, for large matrices on
            accelerators: σ − tσ/√(σ² + t²), which is σ − t where σ ≫ t and near 0 where σ ≪ t, so no rank falls before
            an exact step; where values are exempt it is as 'gram'.
    """
    shares = torch.as_tensor(threshold, dtype=torch.float64, device=matrix.device).expand(matrix.shape[:-2])
    if solver == "newton-schulz" and not exempt:
        return _smoothly_shrunk(matrix, shares, relative=relative)

    def shrunk(values: Tensor) -> Tensor:
        cut = (shares * values[..., 0] if relative else shares).to(values)
        kept = (values - cut[..., None]).clamp_min(0)
        kept[..., :exempt] = values[..., :exempt]
        return kept

    return _with_values(matrix, shrunk, solver)


def truncate_rank(matrix: Tensor, rank: int, *, solver: Solver = "gram") -> Tensor:
    """The nearest matrices of at most `rank` to …×m×n ones (Eckart & Young, 1936)."""

    def truncated(values: Tensor) -> Tensor:
        kept = values.clone()
        kept[..., rank:] = 0
        return kept

    return _with_values(matrix, truncated, solver)


def _with_values(matrix: Tensor, changed: Callable[[Tensor], Tensor], solver: Solver) -> Tensor:
    """The matrices with their singular values (descending) replaced by what `changed` makes of them."""
    if solver == "svd" or matrix.dtype == torch.float64:
        left, values, right = svd(matrix)
        return (left * changed(values)[..., None, :]) @ right
    wide = _wide(matrix)
    eigenvalues, vectors = _on_cpu_if_need_be(torch.linalg.eigh, _gram(wide))
    values, vectors = _roots(eigenvalues).flip(-1), vectors.flip(-1)
    factors = torch.where(values > 0, changed(values) / values, 0.0)
    made = ((vectors * factors[..., None, :]) @ (vectors.mT @ wide.double())).to(matrix.dtype)
    return made if wide is matrix else made.mT


def _smoothly_shrunk(matrix: Tensor, thresholds: Tensor, *, relative: bool) -> Tensor:
    """X − t·(XXᵀ + t²I)^(−½)·X, the root by the coupled iteration of Newton and Schulz (Higham, Functions of Matrices,
    SIAM 2008, section 6.7). A relative t is a share of (Σσ⁸)^⅛, which is σ₁ or, at most, min(m, n)^⅛ times that.
    """
    _require_finite(matrix)
    wide = _wide(matrix)
    gram, identity = wide @ wide.mT, torch.eye(wide.shape[-2], dtype=matrix.dtype, device=matrix.device)
    largest = torch.linalg.matrix_norm(gram @ gram) ** 0.25 if relative else 1.0
    cut = (thresholds.to(matrix.dtype) * largest)[..., None, None]
    regular = gram + cut.square() * identity
    scale = torch.linalg.matrix_norm(regular)[..., None, None].clamp_min(torch.finfo(matrix.dtype).tiny)
    root, inverse = regular / scale, identity.expand_as(regular)
    for _ in range(_ITERATIONS):
        step = 1.5 * identity - 0.5 * inverse @ root
        root, inverse = root @ step, step @ inverse
    made = wide - cut / scale.sqrt() * (inverse @ wide)
    return made if wide is matrix else made.mT


def _wide(matrix: Tensor) -> Tensor:
    """The matrices, or if they have more rows than columns those that lie on their side."""
    return matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT


def _gram(wide: Tensor) -> Tensor:
    _require_finite(wide)
    exact = wide.double()
    return exact @ exact.mT


def _roots(eigenvalues: Tensor) -> Tensor:
    return eigenvalues.clamp_min(0).sqrt()


def _require_finite(matrix: Tensor) -> None:
    if not torch.isfinite(matrix).all():
        raise DivergedError("a weight matrix holds NaN or infinity: training diverged; lower the learning rate")


def _on_cpu_if_need_be(solve: Callable[[Tensor], tuple[Tensor, ...]], matrix: Tensor) -> tuple[Tensor, ...]:
    """What a solver finds; where an accelerator's does not converge, what the CPU's finds in float64."""
    try:
        return solve(matrix)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        return tuple(part.to(matrix) for part in solve(matrix.double().cpu()))


def soft_threshold(values: Tensor, threshold: float) -> Tensor:
    """argmin_X ½‖X − values‖² + threshold·‖X‖₁."""
    return values.sign() * (values.abs() - threshold).clamp_min(0)


def sparse_group_prox(groups: Tensor, strength: float, alpha: float, sizes: Tensor | float, exempt: int = 0) -> Tensor:
    """The exact proximal operator of strength·Σ_g [(1−α)·√P_g·‖w_g‖₂ + α·‖w_g‖₁], one group a row.

    `sizes` are the P_g (a padded row may be longer than its group). Rows shrunk away are exactly zero. The
    `exempt` rows of largest norm stay as they are.
    """
    softened = soft_threshold(groups, strength * alpha) if alpha else groups
    norms = torch.linalg.vector_norm(softened, dim=1)
    roots = torch.as_tensor(sizes, dtype=groups.dtype, device=groups.device).sqrt()
    cut = strength * (1 - alpha) * roots
    factors = torch.where(norms > cut, 1 - cut / norms.clamp_min(torch.finfo(norms.dtype).tiny), 0.0)
    shrunk = softened * factors[:, None]
    if exempt:
        strongest = torch.linalg.vector_norm(groups, dim=1).topk(min(exempt, len(groups))).indices
        shrunk[strongest] = groups[strongest]
    return shrunk


def nuclear_norm(matrix: Tensor) -> float:
    """Σσ, the nuclear norm."""
    return float(singular_values(matrix).sum())


def sparse_group_norm(groups: Tensor, alpha: float, sizes: Tensor | float) -> float:
    """Σ_g [(1−α)·√P_g·‖w_g‖₂ + α·‖w_g‖₁], one group a row."""
    roots = torch.as_tensor(sizes, dtype=groups.dtype, device=groups.device).sqrt()
    lasso = (roots * torch.linalg.vector_norm(groups, dim=1)).sum()
    return float((1 - alpha) * lasso + alpha * groups.abs().sum())
