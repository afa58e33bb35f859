"""--int8 of compress and export: the int8 files lie beside the float ones, and a run's report has four rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from rankfold.records import Bench, Evaluation, Parity, Plan
from rankfold.stages import named

from .conftest import SOAK
from .export.nets import Net

pytest.importorskip("torch")

FOUR = ["dense", "compact", "dense.int8", "compact.int8"]


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    """A network and inputs."""
    net = Net(channels=3, spatial=(12, 12))
    onnx.save(net.model(net.head(net.block(net.block("input", "a", 16), "b", 24))), tmp_path / "net.onnx")
    rough = np.random.default_rng(0).normal(size=(70, 3, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", input=rough.repeat(3, axis=2).repeat(3, axis=3))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _weights_in_int8(path: Path) -> int:
    return sum(
        one.data_type == onnx.TensorProto.INT8 and len(one.dims) > 1 for one in onnx.load(path).graph.initializer
    )


def test_compress_writes_both(models, call):
    code, said, error = call("compress net.onnx -o small.onnx --macs 0.6 --tile 1 --data data.npz --int8")
    assert code == 0, error
    endings = (".onnx", ".parity.json", ".plan.json")
    written = {f"{stem}{ending}" for stem in ("small", "small.int8") for ending in endings}
    assert {path.name for path in models.iterdir()} == {"net.onnx", "data.npz", *written}
    layers = Plan.read(models / "small.plan.json").layers
    factors = sum(2 if layer.form != "dense" else 1 for layer in layers.values())
    assert factors > len(layers)
    assert _weights_in_int8(models / "small.int8.onnx") == factors
    assert not _weights_in_int8(models / "small.onnx")
    assert "small.int8.onnx: " in said
    assert "(ranges from 35 inputs, judged on as many others)" in said


def test_a_budget_of_time_is_one_of_int8(models, call):
    code, _, error = call("compress net.onnx -o small.onnx --damage 0.3 --tile 1 --data data.npz --table t.db --int8")
    assert code == 0, error
    timing = Plan.read(models / "small.plan.json").timing
    assert timing is not None
    assert timing.precision == "int8"
    assert ", both files in int8" in timing.verdict
    assert _weights_in_int8(models / "small.int8.onnx")
    assert not _weights_in_int8(models / "small.onnx")


def test_what_is_quantised_already_is_said_before_anything_is_timed(models, call):
    assert call("quantize net.onnx -o q.onnx --data data.npz --tile 1")[0] == 0
    code, _, error = call("compress q.onnx -o small.onnx --damage 0.3 --data data.npz --table t.db --int8")
    assert code == 2
    assert "q.onnx: the model is quantised already; give the float model" in error
    assert not list(models.glob("small*"))


def test_compress_says_what_int8_needs(models, call):
    for more in ("", "--data data.npz --plan-only"):
        code, _, error = call(f"compress net.onnx -o small.onnx --macs 0.6 --int8 {more}")
        assert code == 2
        assert "--int8: goes with --data, which gives the ranges, and without --plan-only" in error
    assert {path.name for path in models.iterdir()} == {"net.onnx", "data.npz"}


def test_a_run_folder_stands_for_its_files_in_int8_too(tmp_path):
    for name in ("dense", "compact", "compact.int8"):
        (tmp_path / f"{name}.onnx").touch()
    assert [name for name, _ in named([tmp_path])] == ["dense", "compact", "compact.int8"]


@pytest.mark.skipif(not SOAK, reason="two exports, an evaluation and a bench: see make soak")
def test_a_run_has_four_rows(finished, tmp_path, call):
    run = tmp_path / "run"
    shutil.copytree(finished.run, run)
    code, said, error = call(f"export {run} --int8")
    assert code == 0, error
    assert "dense.int8.onnx: " in said
    assert "compact.int8.onnx: " in said
    for name in ("dense.int8", "compact.int8"):
        how = Plan.read(run / f"{name}.plan.json").quantized
        assert how is not None
        assert how.held_apart
        damage = Parity.read(run / f"{name}.parity.json").damage
        assert damage is not None
        assert damage.data.endswith(", training")
        assert _weights_in_int8(run / f"{name}.onnx")
    assert call(f"evaluate {run}")[0] == 0
    assert [score.name for score in Evaluation.read(run / "evaluation.json").scores] == FOUR
    assert call(f"bench {run} --pairs 2 -o {run / 'bench.json'}")[0] == 0
    assert [variant.name for variant in Bench.read(run / "bench.json").variants] == FOUR
    assert call(f"report {run}")[0] == 0
    rows = (run / "report.csv").read_text().splitlines()
    assert all(any(row.startswith(f"{name},") for row in rows) for name in FOUR)
    assert call(f"export {run}")[0] == 0
    assert not list(run.glob("*int8*"))
