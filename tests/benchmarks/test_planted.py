"""The benchmark of explain: each planted network has the cause that it is planted with, its first file has not."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from rankfold.benchmarks.planted import CAUSES
from rankfold.export.explain.causes import steps
from rankfold.export.fold import opened
from rankfold.runtime.inputs import Given

TILE = 16


@pytest.mark.parametrize("planted", CAUSES)
def test_a_planted_cause_is_among_those_that_are_looked_for(planted, tmp_path):
    cause, *both = CAUSES[planted]
    tidied = []
    for number, made in enumerate(both):
        path = tmp_path / f"{number}.onnx"
        onnx.save(made(16, 8, 0, TILE), path)
        tidied.append(opened(path, Given(), tmp_path)[0])
    first, second = tidied
    assert cause in [step.cause for step in steps(ir.from_proto(onnx.load(tmp_path / "1.onnx")), second, first, TILE)]
    assert cause not in [
        step.cause for step in steps(ir.from_proto(onnx.load(tmp_path / "0.onnx")), first, first, TILE)
    ]
