"""The proximal operators of compression-aware training: free functions on tensors that return new values.

Alvarez & Salzmann, "Compression-aware Training of Deep Networks", NIPS 2017; singular value thresholding is
Cai, Candès & Shen, SIAM J. Optim. 20(4), 2010; the sparse group lasso step is Simon et al., JCGS 22(2), 2013.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import RankfoldError


class DivergedError(RankfoldError):
    """A weight became infinite or NaN."""

    exit_code = 1


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD (U, σ, Vᵀ) of an m×n matrix, σ descending.

    CUDA's solvers can fail to converge on nearly rank-deficient matrices; then the CPU's does it.
    """
    if not torch.isfinite(matrix).all():
        raise DivergedError("a weight matrix holds NaN or infinity: training diverged; lower the learning rate")
    try:
        return torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        left, values, right = torch.linalg.svd(matrix.double().cpu(), full_matrices=False)
        return left.to(matrix), values.to(matrix), right.to(matrix)


def nuclear_norm_prox(matrix: Tensor, threshold: float, exempt: int = 0) -> Tensor:
    """argmin_X ½‖X − matrix‖² + threshold·‖X‖_*: every singular value falls by `threshold`, not below 0.

    With `exempt` the largest singular values stay: the truncated nuclear norm (Hu et al., TPAMI 35(9), 2013).
    """
    left, values, right = svd(matrix)
    kept = (values - threshold).clamp_min(0)
    kept[:exempt] = values[:exempt]
    return (left * kept) @ right


def truncate_rank(matrix: Tensor, rank: int) -> Tensor:
    """The nearest matrix of at most `rank` (Eckart & Young, 1936)."""
    left, values, right = svd(matrix)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


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
    return float(svd(matrix)[1].sum())


def sparse_group_norm(groups: Tensor, alpha: float, sizes: Tensor | float) -> float:
    """Σ_g [(1−α)·√P_g·‖w_g‖₂ + α·‖w_g‖₁], one group a row."""
    roots = torch.as_tensor(sizes, dtype=groups.dtype, device=groups.device).sqrt()
    lasso = (roots * torch.linalg.vector_norm(groups, dim=1)).sum()
    return float((1 - alpha) * lasso + alpha * groups.abs().sum())
