"""The float64 transposed convolution and local response norm against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.export.parity import FLOOR, difference, run
from rankfold.export.reference import evaluate
from rankfold.runtime.inputs import make_inputs

CASES = {
    "plain": {},
    "grouped": {"group": 2},
    "depthwise": {"group": 4},
    "padded": {"pads": [1, 0, 0, 1]},
    "overlapping": {"strides": [1, 1]},
    "dilated": {"dilations": [2, 3]},
    "longer": {"output_padding": [1, 1], "strides": [3, 3]},
    "same-upper": {"auto_pad": "SAME_UPPER", "strides": [1, 1]},
    "same-lower": {"auto_pad": "SAME_LOWER", "strides": [1, 1]},
    "sized": {"output_shape": [9, 13]},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_transposed_convolutions_agree(net, options):
    builder = net(channels=4, spatial=(5, 7))
    out = 4 if options.get("group") == 4 else 8
    _agrees(builder.model(builder.transposed("input", "up", out, **options)))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_norms_agree(net, size):
    builder = net(channels=6, spatial=(5, 7))
    _agrees(builder.model(builder.op("LRN", "input", size=size, alpha=0.7, beta=0.6, bias=1.5)))


def _agrees(model) -> None:
    inputs = make_inputs(model, 8, np.random.default_rng(0))
    truth = evaluate(model, {name: numbers.astype(np.float64) for name, numbers in inputs.items()})
    relative, _ = difference(run(model.SerializeToString(), inputs), truth)
    assert relative < FLOOR
