"""The proximal operators against closed forms, optimality conditions and a numerical optimiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from rankfold.train.proximal import (
    SOLVERS,
    DivergedError,
    nuclear_norm,
    nuclear_norm_prox,
    singular_values,
    soft_threshold,
    sparse_group_norm,
    sparse_group_prox,
    svd,
    truncate_rank,
)

EXACT = 1e-9  # float64: a handful of roundings on numbers near 1
FLOAT = 2e-6  # float32: some roundings on numbers near 1
OPTIMISER = 1e-4  # what L-BFGS reaches on a smoothed objective


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, columns)))


@pytest.mark.parametrize(("rows", "columns"), [(5, 3), (3, 5), (4, 4), (1, 6), (40, 8)])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 2.0, 1e6])
def test_nuclear_prox_lowers_every_singular_value(rows, columns, threshold):
    given = matrix(rows, columns, 1)
    expected = (svd(given)[1] - threshold).clamp_min(0)
    found = svd(nuclear_norm_prox(given, threshold))[1]
    torch.testing.assert_close(found, expected, atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("seed", range(5))
def test_nuclear_prox_is_the_minimiser(seed):
    """0 ∈ X − M + t ∂‖X‖_*: (M − X)/t has spectral norm 1 and inner product ‖X‖_* with X."""
    given, threshold = matrix(6, 4, seed), 0.8
    found = nuclear_norm_prox(given, threshold)
    dual = (given - found) / threshold
    assert float(torch.linalg.matrix_norm(dual, 2)) <= 1 + EXACT
    assert float((dual * found).sum()) == pytest.approx(nuclear_norm(found), abs=EXACT)


def test_exempt_singular_values_stay():
    given = matrix(6, 4, 3)
    found = svd(nuclear_norm_prox(given, 1e6, exempt=2))[1]
    torch.testing.assert_close(found[:2], svd(given)[1][:2], atol=EXACT, rtol=EXACT)
    assert float(found[2:].abs().max()) < EXACT


def test_soft_threshold_closed_form():
    given = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    assert soft_threshold(given, 1.0).tolist() == [-1.0, 0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_sparse_group_prox_against_an_optimiser(alpha, seed):
    groups, strength, size = matrix(3, 4, seed), 0.25, 4.0

    def objective(flat: np.ndarray) -> float:
        candidate = torch.from_numpy(flat.reshape(3, 4))
        fit = 0.5 * float(((candidate - groups) ** 2).sum())
        return fit + strength * sparse_group_norm(candidate, alpha, size)

    found = sparse_group_prox(groups, strength, alpha, size)
    best = min(
        minimize(objective, start, method="Powell", options={"xtol": 1e-8, "ftol": 1e-12, "maxiter": 20000}).fun
        for start in (groups.numpy().ravel(), found.numpy().ravel())
    )
    assert objective(found.numpy().ravel()) <= best + OPTIMISER


def test_groups_become_exactly_zero_and_the_rest_shrink():
    groups = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    found = sparse_group_prox(groups, 1.0, 0.0, 1.0)
    assert found[1].tolist() == [0.0, 0.0]
    torch.testing.assert_close(found[0], groups[0] * 0.8)


def test_exempt_groups_stay():
    groups = torch.tensor([[3.0, 4.0], [0.3, 0.4], [6.0, 8.0]])
    found = sparse_group_prox(groups, 1e6, 0.0, 1.0, exempt=1)
    assert found.tolist() == [[0.0, 0.0], [0.0, 0.0], [6.0, 8.0]]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_truncation_meets_eckart_young(rank):
    given = matrix(7, 5, 9)
    error = float(torch.linalg.matrix_norm(given - truncate_rank(given, rank)))
    assert error == pytest.approx(float(svd(given)[1][rank:].square().sum().sqrt()), abs=EXACT)


def decaying(*shape: int, seed: int = 0) -> torch.Tensor:
    """float32 matrices with singular values from 1 down to a thousandth."""
    left, values, right = torch.linalg.svd(
        torch.from_numpy(np.random.default_rng(seed).normal(size=shape)), full_matrices=False
    )
    return ((left * torch.logspace(0, -3, values.shape[-1], dtype=left.dtype)) @ right).float()


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (20, 20), (3, 24, 72)])
@pytest.mark.parametrize("exempt", [0, 4])
def test_the_gram_matrix_says_what_an_svd_in_float64_does(shape, exempt):
    given = decaying(*shape)
    exact = nuclear_norm_prox(given.double(), 0.05, exempt).float()
    torch.testing.assert_close(nuclear_norm_prox(given, 0.05, exempt), exact, atol=FLOAT, rtol=0)
    torch.testing.assert_close(truncate_rank(given, 5), truncate_rank(given.double(), 5).float(), atol=FLOAT, rtol=0)
    torch.testing.assert_close(singular_values(given), svd(given.double())[1], atol=FLOAT, rtol=0)


def test_shrunk_singular_values_are_gone_to_the_last_digit_of_float32():
    found = singular_values(nuclear_norm_prox(decaying(32, 64), 0.05))
    kept = int((singular_values(decaying(32, 64)) > 0.05).sum())
    assert 0 < kept < 32
    assert float(found[kept:].max()) < FLOAT


@pytest.mark.parametrize("solver", SOLVERS)
def test_matrices_of_one_shape_go_together_each_with_its_own_threshold(solver):
    given, cuts = torch.stack([decaying(12, 30, seed=seed) for seed in range(3)]), torch.tensor([0.02, 0.1, 0.4])
    together = nuclear_norm_prox(given, cuts, relative=True, solver=solver)
    for one, cut, found in zip(given, cuts, together, strict=True):
        alone = nuclear_norm_prox(one, float(cut), relative=True, solver=solver)
        torch.testing.assert_close(found, alone, atol=10 * FLOAT, rtol=0)


@pytest.mark.parametrize("threshold", [0.01, 0.1])
@pytest.mark.parametrize("shape", [(16, 144), (144, 16)])
def test_newton_and_schulz_shrink_smoothly(shape, threshold):
    given = decaying(*shape)
    left, values, right = svd(given.double())
    wanted = values - threshold * values / (values.square() + threshold**2).sqrt()
    found = nuclear_norm_prox(given, threshold, solver="newton-schulz")
    torch.testing.assert_close(found, ((left * wanted) @ right).float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_zeros_stay_zeros(solver):
    given = torch.zeros(2, 4, 6)
    assert torch.equal(nuclear_norm_prox(given, 0.1, relative=True, solver=solver), given)


@pytest.mark.parametrize("solver", SOLVERS)
def test_nan_is_refused(solver):
    with pytest.raises(DivergedError, match="NaN or infinity"):
        nuclear_norm_prox(torch.tensor([[1.0, float("nan")]]), 0.1, solver=solver)
