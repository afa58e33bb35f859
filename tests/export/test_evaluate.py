from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from scipy.stats import norm

from rankfold.errors import InputError
from rankfold.export.evaluate import score, wilson
from rankfold.files import sha256_of

SHAPE = (3, 12, 10)
FACTS = {"data": "noise", "split": "test", "seed": 3, "name": "chain"}


@pytest.fixture
def model(tmp_path, net) -> Path:
    """A linear classifier: every class wins on some noise."""
    builder = net()
    scores = builder.gemm(builder.op("Flatten", "input"), "fc", 360, 5)
    onnx.save(builder.model(scores), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def _inputs(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, *SHAPE), dtype=np.float32)


def test_score_counts_right_answers_over_batches(model):
    inputs = _inputs(150)
    found = [score(model, inputs, np.full(150, label), **FACTS) for label in range(5)]
    assert sum(round(one.value * one.n) for one in found) == 150
    best = max(range(5), key=lambda label: found[label].value)
    assert 0 < found[best].low < found[best].value < found[best].high <= 1
    assert (found[best].n, found[best].metric, found[best].seed) == (150, "top-1", 3)
    assert found[best].model_sha256 == sha256_of(model)


def test_a_fixed_batch_is_respected(model):
    fixed = onnx.load(model)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, model.with_name("fixed.onnx"))
    inputs, labels = _inputs(5), np.zeros(5, int)
    one, many = (score(path, inputs, labels, **FACTS) for path in (model.with_name("fixed.onnx"), model))
    assert one.value == many.value


def test_wilson_covers_a_known_proportion():
    """Coverage by enumeration of the binomial at n = 50, against the nominal 95 %."""
    n, p = 50, 0.9
    ways = np.cumsum(np.log(np.r_[1, np.arange(1, n + 1)]))
    right = np.arange(n + 1)
    chance = np.exp(ways[n] - ways[right] - ways[n - right] + right * np.log(p) + (n - right) * np.log(1 - p))
    inside = [low <= p <= high for low, high in (wilson(int(k), n) for k in right)]
    assert chance.sum() == pytest.approx(1)
    assert 0.93 < chance[inside].sum() < 0.98


def test_wilson_solves_its_defining_equation():
    low, high = wilson(45, 50)
    for end in (low, high):
        assert abs(0.9 - end) / np.sqrt(end * (1 - end) / 50) == pytest.approx(norm.ppf(0.975))
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (_inputs(0), np.zeros(0, int), "noise: expected inputs with a label each, found 0 and 0"),
        (_inputs(4), np.zeros(3, int), "noise: expected inputs with a label each, found 4 and 3"),
        (_inputs(2)[:, :1], np.zeros(2, int), r"expected inputs of shape \['batch', 3, 12, 10\], found"),
        (_inputs(2)[0], np.zeros(3, int), r"expected inputs of shape .*, found \[3, 12, 10\]; use"),
        (_inputs(2) * np.nan, np.zeros(2, int), "expected class scores, found NaN"),
    ],
    ids=["empty", "count", "channels", "rank", "nan"],
)
def test_bad_data(model, inputs, labels, message):
    with pytest.raises(InputError, match=message):
        score(model, inputs, labels, **FACTS)


def test_bad_models(tmp_path, net):
    with pytest.raises(InputError, match=r"cannot read .*none.onnx: No such file"):
        score(tmp_path / "none.onnx", _inputs(1), np.zeros(1, int), **FACTS)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(InputError, match=r"text.onnx: ONNX Runtime refuses it: .*; export it again"):
        score(tmp_path / "text.onnx", _inputs(1), np.zeros(1, int), **FACTS)
    builder = net()
    onnx.save(builder.model(builder.conv("input", "a", 4)), tmp_path / "map.onnx")
    with pytest.raises(InputError, match=r"expected scores of shape \[1, classes\], found \[1, 4, 12, 10\]"):
        score(tmp_path / "map.onnx", _inputs(1), np.zeros(1, int), **FACTS)
