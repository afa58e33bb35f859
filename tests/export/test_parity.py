from __future__ import annotations

import numpy as np
import onnx
import pytest

from rankfold.errors import CheckFailed, InputError
from rankfold.export.parity import difference, exact_check, lossy_check, original, require


def _bytes(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString()


def _perturbed(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(one for one in copy.graph.initializer if one.name == "fc.weight")
    numbers = onnx.numpy_helper.to_array(tensor).copy()
    numbers[0, 1] *= factor  # channel 0 is dead
    tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, tensor.name))
    return copy


def test_the_model_itself_passes_and_a_small_change_does_not(chain_case):
    truth = original(_bytes(chain_case.model), batch=3)
    assert exact_check(truth, _bytes(chain_case.model), "nothing").passed
    changed = exact_check(truth, _bytes(_perturbed(chain_case.model, 1.001)), "a change")
    assert not changed.passed
    assert changed.bound is not None
    assert changed.relative > changed.bound
    with pytest.raises(CheckFailed, match="a change, batch 3: expected a relative error of at most"):
        require(changed)


def test_lossy_steps_are_reported_but_nan_fails(chain_case):
    truth = original(_bytes(chain_case.model), batch=1)
    changed = lossy_check(truth, _bytes(_perturbed(chain_case.model, 1.5)), "rank")
    assert changed.passed
    assert changed.bound is None
    assert changed.relative > 0
    broken = lossy_check(truth, _bytes(_perturbed(chain_case.model, np.nan)), "rank")
    assert not broken.passed
    with pytest.raises(CheckFailed, match="expected a relative error of finite outputs"):
        require(broken)


@pytest.mark.parametrize(
    ("outputs", "truth"),
    [
        ([np.zeros((2, 3))], [np.zeros((2, 1))]),
        ([np.zeros(2)], [np.zeros(2), np.zeros(2)]),
        ([np.array([np.nan, 1.0])], [np.array([1.0, 1.0])]),
        ([np.array([1.0])], [np.array([np.nan])]),
        ([np.array([np.inf])], [np.array([np.inf])]),
        ([], []),
        ([np.zeros((0, 3))], [np.zeros((0, 3))]),
    ],
    ids=["broadcastable", "count", "nan", "nan-truth", "infinity", "nothing", "empty"],
)
def test_no_comparison_is_an_infinite_difference(outputs, truth):
    assert difference(outputs, truth) == (np.inf, np.inf)


def test_difference_is_relative_to_the_largest_number():
    assert difference([np.array([1.0, -4.5])], [np.array([1.0, -4.0])]) == (0.125, 0.5)


def test_inputs_of_unknown_size_are_refused(chain_case):
    chain_case.model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(InputError, match="input 'input': axis 2 has no fixed size"):
        original(_bytes(chain_case.model), batch=1)
