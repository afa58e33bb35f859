"""The proximal operators against closed forms, optimality conditions and a numerical optimiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from rankfold.train.proximal import (
    DivergedError,
    nuclear_norm,
    nuclear_norm_prox,
    soft_threshold,
    sparse_group_norm,
    sparse_group_prox,
    svd,
    truncate_rank,
)

EXACT = 1e-9  # float64: a handful of roundings on numbers near 1
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


def test_nan_is_refused():
    with pytest.raises(DivergedError, match="NaN or infinity"):
        svd(torch.tensor([[1.0, float("nan")]]))
