from __future__ import annotations

import numpy as np
import pytest

from rankfold.export.decompose import (
    Factors,
    energy_of_ranks,
    numerical_rank,
    rank_by_energy,
    singular_values,
    truncated_svd,
)
from rankfold.export.forms import FORMS, resolve

SHAPES = [(6, 4, 3, 3), (4, 7, 5, 3), (5, 5, 3, 1), (5, 4, 1, 5), (8, 3, 1, 1)]
CASES = [(resolve(name, shape), shape) for name in FORMS for shape in SHAPES]
ROUNDING = 1e-12  # float64 sums of fewer than a thousand terms of size one


@pytest.mark.parametrize(("form", "shape"), CASES, ids=str)
def test_full_rank_reproduces_the_kernel(form, shape):
    kernel = np.random.default_rng(0).normal(size=shape)
    factors = truncated_svd(kernel, form, form.full_rank(shape))
    np.testing.assert_allclose(factors.to_dense(), kernel, atol=ROUNDING)


@pytest.mark.parametrize(("form", "shape"), CASES, ids=str)
def test_error_is_that_of_eckart_and_young_at_every_rank(form, shape):
    kernel = np.random.default_rng(1).normal(size=shape)
    values = singular_values(kernel, form)
    for rank in range(1, form.full_rank(shape) + 1):
        factors = truncated_svd(kernel, form, rank)
        error = np.linalg.norm(factors.to_dense() - kernel)
        assert factors.ranks == [rank]
        assert error == pytest.approx(np.sqrt(np.sum(values[rank:] ** 2)), abs=ROUNDING)


@pytest.mark.parametrize("rank", [0, 5])
def test_rank_out_of_range_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank {rank} is not between 1 and the full rank 4"):
        truncated_svd(np.ones((4, 5, 3, 3)), FORMS["channel"], rank)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((2, 3), (4, 2, 1, 1), "factor 1: expected 4 dimensions, found 2"),
        ((2, 3, 3, 3), (4, 5, 1, 1), "ranks differ: factor 1 2, factor 2 5"),
        ((2, 3, 3, 1), (4, 2, 3, 1), "both factors have taps on axis 2"),
    ],
)
def test_factors_own_their_invariant(first, second, message):
    with pytest.raises(ValueError, match=message):
        Factors((np.zeros(first), np.zeros(second)))


def test_rank_by_energy_is_the_smallest_rank_with_the_share():
    values = np.array([4.0, 3.0, 2.0, 1.0])
    assert [rank_by_energy(values, energy) for energy in (0.1, 0.4, 0.41, 0.7, 0.9, 1.0)] == [1, 1, 2, 2, 3, 4]
    assert rank_by_energy(values, 0.83, power=2) == 2  # 25 of 30
    assert rank_by_energy(np.zeros(4), 0.9) == 1
    assert energy_of_ranks(values).tolist() == [0.4, 0.7, 0.9, 1.0]
    with pytest.raises(ValueError, match=r"expected an energy in \(0, 1\], found 0"):
        rank_by_energy(values, 0)


def test_numerical_rank_sees_through_float32_rounding():
    generator = np.random.default_rng(2)
    low = (generator.normal(size=(60, 5)) @ generator.normal(size=(5, 40))).astype(np.float32)
    values = np.linalg.svd(low.astype(np.float64), compute_uv=False)
    assert numerical_rank(values, low.shape) == 5 < np.count_nonzero(values > 0)
    assert numerical_rank(np.zeros(3), (3, 3)) == 0
