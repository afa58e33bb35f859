"""The float64 evaluator against ONNX Runtime, on the operators it replaces."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.export.parity import FLOOR, difference, run
from rankfold.export.reference import evaluate
from rankfold.runtime.inputs import make_inputs

CONVOLUTIONS = {
    "plain": {"pads": [1, 1, 1, 1]},
    "strided": {"pads": [0, 1, 2, 0], "strides": [2, 3]},
    "dilated": {"pads": [2, 1, 0, 3], "dilations": [2, 1]},
    "same-upper": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "same-lower": {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
    "valid": {"auto_pad": "VALID"},
    "grouped": {"group": 2, "pads": [1, 1, 1, 1]},
    "depthwise": {"group": 4, "pads": [1, 1, 1, 1]},
}
POOLS = {
    "plain": {"strides": [2, 2]},
    "overlapping": {"strides": [1, 2], "pads": [1, 0, 1, 1]},
    "ceil": {"strides": [2, 2], "ceil_mode": 1},
    "ceil-dropped": {"strides": [3, 3], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
    "dilated": {"strides": [1, 1], "dilations": [2, 2]},
    "same": {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
}


def _agrees(model) -> None:
    inputs = make_inputs(model, 2, np.random.default_rng(0))
    truth = evaluate(model, {name: numbers.astype(np.float64) for name, numbers in inputs.items()})
    assert truth[0].dtype == np.float64
    relative, _ = difference(run(model.SerializeToString(), inputs), truth)
    assert 0 <= relative < FLOOR


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution(net, options):
    builder = net(channels=4, spatial=(9, 11))
    _agrees(builder.model(builder.conv("input", "a", 6 if options.get("group") != 4 else 4, **options)))


@pytest.mark.parametrize("options", POOLS.values(), ids=POOLS)
def test_max_pool(net, options):
    builder = net(channels=4, spatial=(9, 12))
    _agrees(builder.model(builder.op("MaxPool", "input", kernel_shape=[3, 3], **options)))


def test_zoo(case):
    _agrees(case.model)
