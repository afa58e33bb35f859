"""Data-aware decompositions: never worse than plain where they are optimal, never worse than where they start."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rankfold.export.aware import Moments, Unweighted, whitened
from rankfold.export.decompose import plain_factors, truncated_svd, tucker2
from rankfold.export.forms import FORMS, TUCKER2, Form, resolve

from .own_moments import own_moments

ROUNDING = 1e-9  # of scores: relative sums of a few thousand float64 products
LAYERS = range(100)


def layer(seed: int, kernel: tuple[int, int] | None = None) -> tuple[np.ndarray, Moments]:
    """A random kernel, and the moments of correlated inputs: a few directions carry most of the variance."""
    rng = np.random.default_rng(seed)
    o, i = rng.integers(3, 9, 2)
    h, w = kernel or rng.choice([1, 2, 3], 2)
    weight = rng.normal(size=(o, i, h, w))
    size = i * h * w
    mixing = rng.normal(size=(size, size)) * np.geomspace(1, 1e-2, size)
    return weight, own_moments(weight, mixing @ mixing.T / size, rng.normal(size=size), rng.normal(size=o))


def plain(weight: np.ndarray, form: Form, rank: int) -> np.ndarray:
    return truncated_svd(weight, form, rank).to_dense()


@pytest.mark.parametrize("name", ["channel", "linear"])
def test_never_scores_worse_than_plain_svd_at_equal_rank(name):
    better = 0
    for seed in LAYERS:
        weight, moments = layer(seed, (1, 1) if name == "linear" else None)
        form, target = resolve(name, weight.shape), whitened(weight, moments)
        for rank in range(1, form.full_rank(weight.shape)):
            aware = moments.score(target.factors(form, (rank,)).to_dense())
            other = moments.score(plain(weight, form, rank))
            assert aware <= other + 2e-4, (seed, rank)  # the damping is 1e-4 of the mean variance
            better += aware < other
    assert better > len(LAYERS)


@pytest.mark.parametrize("name", [*FORMS, "tucker-2"])
def test_full_rank_reproduces_the_kernel(name):
    for seed in range(5):
        weight, moments = layer(seed, (3, 3) if name != "linear" else (1, 1))
        form = TUCKER2 if name == "tucker-2" else FORMS[name]
        factors = whitened(weight, moments).factors(form, form.most(weight.shape))
        np.testing.assert_allclose(factors.to_dense(), weight, atol=1e-6)


@pytest.mark.parametrize("name", ["input-channel", "spatial", "tucker-2"])
def test_alternating_least_squares_only_improves_and_beats_plain(name):
    gains = []
    for seed in range(20):
        weight, moments = layer(seed, (3, 3))
        form, target = (TUCKER2 if name == "tucker-2" else FORMS[name]), whitened(weight, moments)
        for rank in (1, 2):
            ranks = form.ranks(weight.shape, rank)
            start = moments.score(target._start(form, ranks).to_dense())
            end = moments.score(target.factors(form, ranks).to_dense())
            other = moments.score(plain_factors(weight, form, ranks).to_dense())
            assert end <= start + 2e-4, (seed, rank)
            gains.append(other / end)
    assert min(gains) > 0.99
    assert np.median(gains) > 1.3


def test_the_score_falls_as_the_rank_grows():
    weight, moments = layer(3, (3, 3))
    for name, form in {**FORMS, "tucker-2": TUCKER2}.items():
        if name == "linear":
            continue
        target = whitened(weight, moments)
        scores = [
            moments.score(target.factors(form, form.ranks(weight.shape, rank)).to_dense())
            for rank in range(1, form.full_rank(weight.shape))
        ]
        assert all(after <= before * 1.02 for before, after in itertools.pairwise(scores)), name


def test_without_data_the_score_is_the_share_of_eckart_and_young():
    weight = np.random.default_rng(0).normal(size=(6, 5, 3, 3))
    for form in (FORMS["channel"], FORMS["input-channel"], FORMS["spatial"]):
        values = np.linalg.svd(form.matricize(weight), compute_uv=False) ** 2
        for rank in (1, 3):
            score = Unweighted(weight).score(plain(weight, form, rank))
            assert score == pytest.approx(values[rank:].sum() / values.sum(), abs=ROUNDING)


def test_score_and_bias_are_those_of_the_data():
    rng = np.random.default_rng(1)
    weight, inputs = rng.normal(size=(4, 3, 2, 2)), rng.normal(size=(5000, 12)) @ rng.normal(size=(12, 12)) + 2
    seen = inputs + 0.1 * rng.normal(size=inputs.shape)  # what the compressed network before it makes of them
    outputs = inputs @ weight.reshape(4, -1).T + np.arange(4)
    x, y = seen - seen.mean(0), outputs - outputs.mean(0)
    moments = Moments(x.T @ x / len(x), y.T @ x / len(x), float((y**2).mean(0).sum()), seen.mean(0), outputs.mean(0))
    kernel = whitened(weight, moments).factors(FORMS["channel"], (2,)).to_dense()
    bias = moments.bias(kernel)
    errors = outputs - seen @ kernel.reshape(4, -1).T - bias
    assert np.abs(errors.mean(0)).max() < ROUNDING
    assert (errors**2).sum() / (y**2).sum() == pytest.approx(moments.score(kernel), rel=1e-9)
    least = np.linalg.lstsq(x, y, rcond=None)[0].T
    full = whitened(weight, moments).target.reshape(4, -1)
    np.testing.assert_allclose(full, least, atol=0.05 * np.abs(least).max())


def test_tucker_by_orthogonal_iteration():
    rng = np.random.default_rng(2)
    core = np.einsum(
        "abhw,oa,ib->oihw", rng.normal(size=(3, 2, 3, 3)), rng.normal(size=(8, 3)), rng.normal(size=(6, 2))
    )
    factors = tucker2(core, (2, 3))
    assert [kernel.shape for kernel in factors.kernels] == [(2, 6, 1, 1), (3, 2, 3, 3), (8, 3, 1, 1)]
    np.testing.assert_allclose(factors.to_dense(), core, atol=1e-12)
    noisy = core + rng.normal(size=core.shape)
    errors = [np.linalg.norm(tucker2(noisy, (2, 3), sweeps).to_dense() - noisy) for sweeps in range(5)]
    assert all(after <= before + ROUNDING for before, after in itertools.pairwise(errors))
    assert errors[-1] < errors[0]
    with pytest.raises(ValueError, match="ranks 7, 3 are not between 1 and the channels 6, 8"):
        tucker2(core, (7, 3))
