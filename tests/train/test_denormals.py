"""Denormals are flushed while one trains, and the processor is left as it was, whatever happened."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rankfold.train.denormals import flushed_denormals


def flushes() -> bool:
    tiny = np.float32(1e-40)
    return float(tiny * np.float32(1)) == 0


@pytest.mark.parametrize("before", [False, True])
def test_the_processor_is_left_as_it_was(before: bool):
    try:
        torch.set_flush_denormal(before)
        with flushed_denormals():
            assert flushes()
        assert flushes() == before
        with pytest.raises(RuntimeError, match="stop"), flushed_denormals():
            raise RuntimeError("stop")
        assert flushes() == before
    finally:
        torch.set_flush_denormal(False)


def test_a_function_that_is_decorated_can_be_called_again():
    decorated = flushed_denormals()(flushes)
    assert [decorated(), decorated(), flushes()] == [True, True, False]
