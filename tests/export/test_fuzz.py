"""Files from a stranger: whatever is in them, a correct result or one clear line, within bounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from .conftest import average_of_padding, chain, flattened, residual, squeeze_excite
from .mutations import LIMIT_S, LOOSE, MEMORY_BYTES

_FUZZING = Path(__file__).with_name("fuzzing.py")
SECRET = b"SECRET" * 2000
_LONGEST_LINE = 700  # a path, and two hundred characters of the runtime's own words
_OVERHEAD_S = 20.0  # what a busy machine adds to a child's time: starting it, looking again at its result
_KINDS = {"InputError", "CheckFailed"}

TOKENS = """
<ir_version: 8, opset_import: ["" : 17]>
tokens (int64[batch, length] tokens, int64[batch, length] mask) => (float[batch, length, 6] y)
<float[11, 8] table, float[8, 6] weight, float[6] bias, float minus = {-10.0}>
{
  embedded = Gather(table, tokens)
  as_float = Cast<to = 1>(mask)
  one = Constant<value = float {1.0}>()
  off = Sub(one, as_float)
  penalty = Mul(off, minus)
  axis = Constant<value = int64[1] {2}>()
  column = Unsqueeze(penalty, axis)
  shifted = Add(embedded, column)
  h = Softmax<axis = -1>(shifted)
  projected = MatMul(h, weight)
  y = Add(projected, bias)
}
"""
SHAPES = """
<ir_version: 8, opset_import: ["" : 17]>
shapes (float[batch, 4, 6, 5] x) => (float[batch, 4, 12, 10] y)
<float[4, 4, 1, 1] weight, float[4] scale = {1.5, 0.5, -2.0, 1e-40}>
{
  c = Conv(x, weight)
  size = Constant<value = int64[1] {4}>()
  half = ConstantOfShape<value = float[1] {0.5}>(size)
  both = Mul(half, scale)
  to = Constant<value = int64[4] {1, 4, 1, 1}>()
  rows = Reshape(both, to)
  m = Mul(c, rows)
  twice = Constant<value = float[4] {1.0, 1.0, 2.0, 2.0}>()
  up = Resize<mode = "nearest">(m, , twice)
  repeats = Constant<value = int64[4] {1, 1, 1, 1}>()
  tiled = Tile(up, repeats)
  pads = Constant<value = int64[8] {0, 0, 0, 0, 0, 0, 0, 0}>()
  p = Pad(tiled, pads)
  from = Constant<value = int64 {0}>()
  until = Constant<value = int64 {4}>()
  step = Constant<value = int64 {1}>()
  order = Range(from, until, step)
  y = Gather<axis = 1>(p, order)
}
"""
LOOP = """
<ir_version: 8, opset_import: ["" : 17]>
loop (float[batch, 4] x) => (float[batch, 3] y)
<float[4, 4] weight, float[3, 4] last, int64 trips = {3}, bool go = {1}>
{
  r = Loop(trips, go, x) <body = body (int64 i, bool c, float[batch, 4] h) => (bool again, float[batch, 4] out)
  {
    again = Identity(c)
    product = MatMul(h, weight)
    out = Relu(product)
  }>
  y = Gemm<transB = 1>(r, last)
}
"""


def parsed(text: str) -> onnx.ModelProto:
    """A model from text, its weights filled with seeded numbers."""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for value in list(model.graph.value_info):
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        numbers = rng.normal(0, 0.5, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(numbers, value.name))
        model.graph.value_info.remove(value)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="session")
def sources(tmp_path_factory) -> Path:
    """A folder with whole models in `sources`, and a file beside it that is nobody's business."""
    work = tmp_path_factory.mktemp("fuzz")
    folder = work / "sources"
    folder.mkdir()
    for build in (chain, residual, flattened, squeeze_excite, average_of_padding):
        onnx.save(build().model, folder / f"{build.__name__}.onnx")
    for name, text in (("tokens", TOKENS), ("shapes", SHAPES), ("loop", LOOP)):
        onnx.save(parsed(text), folder / f"{name}.onnx")
    outside = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 100}
    onnx.save(chain().model, folder / "outside.onnx", **outside)
    (work / "secret.bin").write_bytes(SECRET)
    return work


def _fuzz(work: Path, count: int, seed: int) -> list[dict]:
    """Every case in a guarded child of one fresh interpreter, as `rankfold fold` runs it."""
    command = [sys.executable, str(_FUZZING), str(work), str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def _environment() -> dict[str, str]:
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}


@pytest.fixture(scope="session")
def outcomes(sources, counts) -> list[dict]:
    return _fuzz(sources, counts(63, 1000), seed=0)


def test_damaged_files_get_a_correct_result_or_one_clear_line(outcomes, counts):
    cases = outcomes[:-1]
    assert len(cases) == counts(63, 1000)
    folded = [case for case in cases if "relative" in case]
    refused = [case for case in cases if "relative" not in case]
    assert len(folded) > 0.1 * len(cases), "the damage is too great to try anything but the parser"
    assert len(refused) > 0.1 * len(cases), "the damage is too small"
    for case in folded:
        assert case["relative"] < LOOSE, case
        assert case["new"] == ["out.onnx", "out.parity.json", "out.plan.json"], case
    for case in refused:
        assert case["kind"] in _KINDS, case
        assert "\n" not in case["text"], case
        assert 20 < len(case["text"]) < _LONGEST_LINE, case
        assert case["new"] == [], case


def test_no_damage_reaches_a_defect_of_ours(outcomes):
    assert [case for case in outcomes[:-1] if "please report" in case.get("text", "")] == []


def test_time_and_memory_stay_bounded(outcomes):
    assert max(case["seconds"] for case in outcomes[:-1]) < LIMIT_S + _OVERHEAD_S
    assert outcomes[-1]["peak_bytes"] < MEMORY_BYTES
