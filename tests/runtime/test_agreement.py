"""Outputs on a device against those here: by this machine's own runtime, said to be an emulated one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from rankfold.devices import card
from rankfold.devices.emulated import EmulatedProcess
from rankfold.devices.local import BOARD, death
from rankfold.errors import CheckFailed, InputError
from rankfold.records import Bench
from rankfold.runtime.agreement import FLOAT32, HALF, INT8, agree, judge, precision
from rankfold.runtime.costs import load
from rankfold.runtime.inputs import write_arrays
from rankfold.runtime.report import write_report
from rankfold.runtime.summary import bench_summary
from rankfold.runtime.turns import Options

from .conftest import save_convolution

A72 = card.find("qemu-cortex-a72").model_copy(update={"expected_architecture": None})


class Emulated:
    """This machine as an emulated device, which may have got another file than the one that was placed."""

    def __init__(self, **instead: Path) -> None:
        self._instead = instead

    def launch(self) -> EmulatedProcess:
        return EmulatedProcess([sys.executable, "-I", str(BOARD)], death)

    def place(self, path: Path) -> str:
        return str(self._instead.get(path.stem, path))


@pytest.fixture
def two(tmp_path: Path) -> list[tuple[str, Path]]:
    """A model, and another of the same input."""
    models = [(name, tmp_path / f"{name}.onnx") for name in ("dense", "compact")]
    for channels, (_, path) in zip((8, 4), models, strict=True):
        save_convolution(path, channels)
    return models


def changed(path: Path, by: float) -> Path:
    """A copy with one weight off by a share."""
    model = onnx.load(path)
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight.flat[np.abs(weight).argmax()] *= 1 + by
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    other = path.with_name("changed.onnx")
    onnx.save(model, other)
    return other


def test_a_report_without_times(two, tmp_path):
    told: list[tuple[str, int, int]] = []
    found = agree(two, Emulated(), A72, Options(seed=3), lambda *now: told.append(now))
    assert told == [("dense", 0, 2), ("compact", 1, 2), ("done", 2, 2)]
    judge(found)
    assert [(one.variant, one.relative, one.allowed) for one in found.agreements] == [
        ("dense", 0.0, FLOAT32),
        ("compact", 0.0, FLOAT32),
    ]
    assert (found.pairs, found.context.facts.emulated) == ([], True)
    assert found.context.provider == "CPUExecutionProvider"
    found.write(tmp_path / "bench.json")
    page = write_report(tmp_path / "bench.json")
    for text in (page.read_text(), page.with_suffix(".md").read_text()):
        assert "no latency was measured; all outputs agree with those here" in text
        assert not re.search(r"[0-9] ?(ms|µs)\b|speed-up", text)
    assert "latency" not in (tmp_path / "dashboard.json").read_text()
    summary = bench_summary(found, None)
    assert "| dense | 0.0e+00 | 1e-05 |" in summary
    assert "qemu-cortex-a72, emulated: it yields no times" in summary


def test_without_times_nothing_is_compared(two, tmp_path, call):
    agree(two[:1], Emulated(), A72, Options()).write(tmp_path / "b.json")
    code, _, error = call(f"compare {tmp_path / 'b.json'} {tmp_path / 'b.json'}")
    assert code == 2
    assert "of an emulated device, which has no times; compare counts: rankfold cost --against" in error


def test_a_network_that_differs_is_named_and_fails(two, tmp_path):
    found = agree(two, Emulated(compact=changed(two[1][1], 1e-3)), A72, Options())
    with pytest.raises(CheckFailed, match=r"compact: outputs on qemu-cortex-a72 are off by \d.*, allowed 1e-05"):
        judge(found)
    found.write(tmp_path / "bench.json")
    text = write_report(tmp_path / "bench.json").with_suffix(".md").read_text()
    assert "outputs of compact differ from those here" in text
    assert Bench.read(tmp_path / "bench.json") == found


def test_other_shapes_are_no_agreement(two):
    with pytest.raises(CheckFailed, match="compact: it puts out NaN, infinity or other shapes than here"):
        agree(two, Emulated(compact=two[0][1]), A72, Options())


def test_the_users_inputs_are_compared_on(two, tmp_path):
    write_arrays(tmp_path / "x.npz", {"x": np.zeros((2, 3, 16, 16), np.float32)})
    found = agree(two[:1], Emulated(), A72, Options(inputs=tmp_path / "x.npz"))
    assert found.context.input_shapes == {"x": [2, 3, 16, 16]}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (Options(pairs=8), "--pairs"),
        (Options(half_width=0.1), "--half-width"),
        (Options(rate_hz=3, sustain_s=5), "--rate and --sustain"),
        (Options(operators=True), "--operators"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_times_are_refused(two, options, named):
    with pytest.raises(InputError, match=f"{named}: device 'qemu-cortex-a72' is emulated and yields no times"):
        agree(two, Emulated(), A72, options)


def test_a_gate_and_a_sweep_are_refused_by_the_command(call, convolution):
    for option in ("--gate 'convolution <= convolution'", "--sweep threads=1,2"):
        code, _, error = call(f"bench {convolution} --device qemu-cortex-a72 {option}")
        assert code == 2
        assert error.count("\n") == 1
    assert "device 'qemu-cortex-a72' is emulated" in error


def test_tolerance_goes_by_the_numbers_in_a_model(convolution):
    model = load(convolution)
    assert precision(model) == FLOAT32
    model.graph.node.append(onnx.helper.make_node("DequantizeLinear", ["a", "b"], ["c"]))
    assert precision(model) == INT8
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float16), "h"))
    assert precision(model) == HALF
