"""tune and quantize on the command line: what they win and cost, going on, and one line for what is wrong."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest

from rankfold.export.parity import run
from rankfold.records import Parity, Plan, Tuned

from .children import started
from .export.nets import Net
from .making import rankfold_here

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A network, a small one made of it, and inputs; read only."""
    folder = tmp_path_factory.mktemp("models")
    net = Net(channels=3, spatial=(12, 12))
    x = net.block(net.block(net.block("input", "a", 16), "b", 24), "c", 24)
    onnx.save(net.model(net.head(x)), folder / "net.onnx")
    other = Net(channels=3, spatial=(12, 12))
    onnx.save(other.model(other.op("NonZero", other.block("input", "a", 4))), folder / "other.onnx")
    rough = np.random.default_rng(0).normal(size=(400, 3, 4, 4)).astype(np.float32)
    np.savez(folder / "data.npz", input=rough.repeat(3, axis=2).repeat(3, axis=3))
    np.savez(folder / "few.npz", input=np.ones((4, 3, 12, 12), np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        line = "compress net.onnx -o small.onnx --macs 0.4 --tile 1 --data data.npz"
        assert rankfold_here(shlex.split(line)) == 0
    return folder


def test_tuning_wins_back_what_the_original_does(models, tmp_path, call, monkeypatch):
    monkeypatch.chdir(models)
    out = tmp_path / "tuned.onnx"
    code, _, said = call(f"tune small.onnx -o {out} --teacher net.onnx --data data.npz --steps 60 --batch 32")
    assert code == 0, said
    tuned = Tuned.read(tmp_path / "tuned.tune.json")
    assert tuned.error_after < 0.8 * tuned.error_before
    assert (tuned.learned_from, tuned.held_out) == (360, 40)
    assert {path.name for path in tmp_path.iterdir()} == {"tuned.onnx", "tuned.tune.json"}
    small, learned = onnx.load(models / "small.onnx"), onnx.load(out)
    assert [node.name for node in learned.graph.node] == [node.name for node in small.graph.node]
    assert [entry.key for entry in learned.metadata_props] == [entry.key for entry in small.metadata_props]
    data = {"input": np.load(models / "data.npz")["input"][360:]}
    wanted, *found = (run(path.read_bytes(), data)[0] for path in (models / "net.onnx", models / "small.onnx", out))
    before, after = (float(np.square(one - wanted).sum()) for one in found)
    assert after / before == pytest.approx(tuned.error_after / tuned.error_before, rel=0.02)


def test_interrupted_and_gone_on_the_weights_are_the_same(models, tmp_path, call, monkeypatch):
    monkeypatch.chdir(models)
    line = "tune small.onnx --teacher net.onnx --data data.npz --steps 60 --batch 16 --save-every-s 0"
    whole = tmp_path / "whole.onnx"
    assert call(f"{line} -o {whole}")[0] == 0
    parts, state = tmp_path / "parts.onnx", tmp_path / "parts.tune.safetensors"
    with started([*shlex.split(line), "-o", str(parts)], models) as child:
        child.wait_for(state.exists)
        assert child.stop(signal.SIGINT) == 130
        assert child.said("err").strip().splitlines()[-1].startswith("rankfold: ")
    assert not parts.exists()
    code, _, said = call(f"{line} -o {parts} --seed 5")
    assert code == 2
    assert "it is from tuning with other files or settings; delete it or repeat those" in said
    assert call(f"{line} -o {parts}")[0] == 0
    assert parts.read_bytes() == whole.read_bytes()
    assert not state.exists()


def test_quantized_to_a_quarter_and_said_how_much_it_costs(models, tmp_path, call, monkeypatch):
    monkeypatch.chdir(models)
    out = tmp_path / "int8.onnx"
    code, printed, said = call(f"quantize net.onnx --data data.npz --samples 64 -o {out}")
    assert code == 0, said
    how = Plan.read(tmp_path / "int8.plan.json").quantized
    assert how is not None
    assert f"ranges by {how.method}, " in printed
    assert f" weights of {how.weight_bits} bits; output error by minmax " in printed
    assert "(ranges from 32 inputs, judged on as many others)" in printed
    assert "same top class" in printed
    assert "rankfold bench" in printed
    damage = Parity.read(tmp_path / "int8.parity.json").damage
    assert damage is not None
    assert 0 < damage.error < 0.5  # outputs that vary little around their bias
    assert damage.agreement == 1
    kinds = {node.op_type for node in onnx.load(out).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds
    code, _, said = call(f"quantize {out} --data {models / 'data.npz'} -o {tmp_path / 'twice.onnx'}")
    assert code == 2
    assert "the model is quantised already; give the float model" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("tune small.onnx -o out.onnx --teacher net.onnx --data few.npz", "expected at least 72 inputs for batches"),
        ("tune small.onnx -o out.onnx --teacher other.onnx --data data.npz", "operator NonZero cannot be tuned"),
        ("tune small.onnx -o out.onnx --teacher nowhere.onnx --data data.npz", "nowhere.onnx"),
        ("tune nowhere.onnx -o out.onnx --teacher net.onnx --data data.npz", "nowhere.onnx"),
        (
            "tune small.onnx -o out.onnx --teacher net.onnx --data data.npz --lr 1e9 --steps 20",
            "lower the learning rate",
        ),
        ("quantize nowhere.onnx -o out.onnx --data data.npz", "nowhere.onnx"),
        ("quantize net.onnx -o out.onnx --data nowhere.npz", "nowhere.npz"),
        ("quantize other.onnx -o data.npz/out.onnx --data data.npz", "data.npz/out.onnx"),
    ],
)
def test_bad_input_is_one_line(models, tmp_path, monkeypatch, call, arguments, says):
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    code, _, said = call(arguments)
    assert code in (1, 2)
    assert "Traceback" not in said
    line = said.splitlines()[-1]
    assert line.startswith("rankfold: ")
    assert says in line
    assert {path.name for path in tmp_path.iterdir()} == before
