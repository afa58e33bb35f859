"""Plans for int8: what a search times is int8 from end to end, kept apart from float, and decides."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from rankfold.errors import CheckFailed
from rankfold.export.budget import Budget, choose
from rankfold.export.candidates import DENSE, Way, frames_of, model_of, place_of
from rankfold.export.graphs import serialize
from rankfold.export.int8_times import in_int8, int8_watch
from rankfold.export.layers import layers_of
from rankfold.export.quantize import Int8
from rankfold.export.search import Search
from rankfold.export.timing import sketch
from rankfold.runtime.latency import Contest

from .test_budget import all_candidates, device, model, stairs, watch_on  # noqa: F401

INT8 = Int8(reduce_range=False)


def _as_it_runs(content: bytes) -> Counter[str]:
    """The operators that the runtime makes of it."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "runs.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def test_layers_factors_and_networks_run_in_int8(model):  # noqa: F811
    layer = next(one for one in layers_of(model) if one.name == "b")
    place, factors = place_of(layer), Way("spatial", (8,))
    assert _as_it_runs(in_int8(model_of(place, DENSE), INT8))["QLinearConv"] == 3  # and a neighbour on each side
    assert _as_it_runs(in_int8(model_of(place, factors), INT8))["QLinearConv"] == 4
    for content in (model_of(place, factors), *frames_of(place), sketch(model, {"b": factors}, [])):
        runs = _as_it_runs(in_int8(content, INT8))
        assert not runs.keys() & {"Conv", "FusedConv", "Gemm", "Relu"}, runs


def test_what_has_no_layers_stays_as_it_is(model):  # noqa: F811
    fc = next(one for one in layers_of(model) if place_of(one).operator != "Conv")
    (frame,) = frames_of(place_of(fc))
    assert in_int8(frame, INT8) == frame


def test_times_in_int8_are_kept_apart(model, tmp_path):  # noqa: F811
    watch = watch_on(device(), tmp_path)
    place = place_of(next(iter(layers_of(model))))
    contest = Contest(model_of(place, DENSE), [model_of(place, Way("spatial", (8,)))])
    assert watch.fill([contest]) == 1
    assert int8_watch(watch, INT8).fill([contest]) == 1
    assert int8_watch(watch, Int8(reduce_range=True)).fill([contest]) == 1
    assert int8_watch(watch, INT8).fill([contest]) == watch.fill([contest]) == 0


def test_a_plan_for_int8_goes_by_its_times(model, tmp_path):  # noqa: F811
    """Here factors are slow in int8 alone."""
    dense = {layer.shape for layer in layers_of(model)}

    def seconds(path: Path) -> float:
        is_int8 = any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)
        return stairs(path, _slow_factors if is_int8 else _even)

    def _even(name: str, shape: tuple[int, ...]) -> float:
        return 1.0

    def _slow_factors(name: str, shape: tuple[int, ...]) -> float:
        return 1.0 if tuple(shape) in dense or shape[1] == 1 else 1000.0

    watch, budget = watch_on(device(seconds), tmp_path), Budget(share=0.5)

    def search(watch) -> Search:
        return Search(ir.from_proto(ir.to_proto(model)), serialize(model), all_candidates(model), None, watch)

    assert any(choose(search(watch), budget, "board").candidates.values())
    with pytest.raises(CheckFailed, match=r"expected at most 0\.500 of the original's time, found 1\.0\d\d"):
        choose(search(int8_watch(watch, INT8)), budget, "board")
