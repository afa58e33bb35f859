"""tune and quantize on the command line: what they win and cost, going on, and one line for what is wrong."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from rankfold.export.parity import run
from rankfold.records import Parity, Plan, Tuned

from .export.nets import Net
from .making import RANKFOLD, environment, rankfold

pytest.importorskip("torch")

WAIT_S = 120.0  # for a child; a slow machine imports torch for half a minute


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
    done = rankfold(folder, *shlex.split("compress net.onnx -o small.onnx --macs 0.4 --tile 1 --data data.npz"))
    assert done.returncode == 0, done.stderr
    return folder


def test_tuning_wins_back_what_the_original_does(models, tmp_path):
    out = tmp_path / "tuned.onnx"
    options = shlex.split("--teacher net.onnx --data data.npz --steps 60 --batch 32")
    done = rankfold(models, "tune", "small.onnx", "-o", str(out), *options)
    assert done.returncode == 0, done.stderr
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
    command = [*RANKFOLD, *shlex.split(line), "-o", str(parts)]
    child = subprocess.Popen(command, cwd=models, stderr=subprocess.PIPE, text=True, env=environment())
    until = time.monotonic() + WAIT_S
    while not state.exists() and time.monotonic() < until:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=WAIT_S)
    assert child.returncode == 130
    assert said.strip().splitlines()[-1].startswith("rankfold: ")
    assert not parts.exists()
    code, _, said = call(f"{line} -o {parts} --seed 5")
    assert code == 2
    assert "it is from tuning with other files or settings; delete it or repeat those" in said
    assert call(f"{line} -o {parts}")[0] == 0
    assert parts.read_bytes() == whole.read_bytes()
    assert not state.exists()


def test_quantized_to_a_quarter_and_said_how_much_it_costs(models, tmp_path, call):
    out = tmp_path / "int8.onnx"
    done = rankfold(models, *shlex.split("quantize net.onnx --data data.npz --samples 64 -o"), str(out))
    assert done.returncode == 0, done.stderr
    how = Plan.read(tmp_path / "int8.plan.json").quantized
    assert how is not None
    assert f"ranges by {how.method}, " in done.stdout
    assert f" weights of {how.weight_bits} bits; output error by minmax " in done.stdout
    assert "(ranges from 32 inputs, judged on as many others)" in done.stdout
    assert "same top class" in done.stdout
    assert "rankfold bench" in done.stdout
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
