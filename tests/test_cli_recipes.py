"""The recipes that need data: ResNet-50 and Dec8 on a folder of images, trained, exported, folded, compressed, in
parity, measured (small and at full size, in soak); CIFAR-10's from given weights.
"""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.torch import save_file

from rankfold.records import Bench, ModelSpec, Parity, Plan, TrainRecord

from .conftest import SOAK
from .train.images import write_folder

pytest.importorskip("torch")

SMALL = {"resnet50": "model.arguments.blocks=[1,1,1,1] optimizer.epochs=1", "dec8": "optimizer.steps=2"}
FULL = {"resnet50": "optimizer.epochs=4", "dec8": "optimizer.steps=20"}  # 6 steps an epoch
LOW_RANK = "regularizer.low_rank=0.01 regularizer.relative=true regularizer.energy=0.9"
COLOURS = "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --crop 0.875"


@pytest.mark.skipif(not SOAK, reason="half a minute small, a quarter of an hour at full size: in soak")
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_trained_exported_folded_compressed(name, full, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "images", train=20 if full else 6, test=4, size=(640, 480) if full else (80, 60))
    size = FULL[name] if full else f"{SMALL[name]} model.arguments.width=0.125 data.size=64"
    keys = f"optimizer.batch_size=8 data.validation_share=0.2 {LOW_RANK} {size}"
    for line in (
        f"train imagenet-{name} --data images --out run {' '.join(f'--set {key}' for key in keys.split())}",
        "export run --tile 8",
        "fold run/dense.onnx -o folded.onnx",
        f"compress folded.onnx -o small.onnx --macs 0.7 --tile 8 --data images/val {COLOURS} --samples 8",
        "bench run/dense.onnx run/compact.onnx small.onnx --pairs 2",
    ):
        code, _, said = call(line)
        assert code == 0, said
    record = TrainRecord.read("run/train.json")
    assert (record.steps >= 20, record.input_shape[1:]) == ((True, (224, 224)) if full else (False, (64, 64)))
    for parity in ("run/parity.json", "folded.parity.json", "small.parity.json"):
        assert all(check.passed for check in Parity.read(parity).checks)
    assert any(layer.form != "dense" for layer in Plan.read("small.plan.json").layers.values())
    assert [variant.name for variant in Bench.read("bench.json").variants] == ["dense", "compact", "small"]


def test_cifar10_goes_on_from_given_weights(tmp_path, monkeypatch, call):
    from rankfold.train import checkpoint
    from rankfold.train.models import build

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    arrays = {f"x_{part}": rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8) for part in ("train", "test")}
    np.savez("cifar.npz", y_train=np.arange(20) % 10, y_test=np.arange(20) % 10, **arrays, allow_pickle=False)
    given = build(ModelSpec(name="resnet20"), 3, 10).state_dict()
    save_file(given, "given.safetensors")
    changes = "--set optimizer.lr=1e-9 --set optimizer.steps=2 --set optimizer.batch_size=9"
    code, _, said = call(f"train cifar10-resnet20 --data cifar.npz --weights given.safetensors {changes} --out run")
    assert code == 0, said
    learned = checkpoint.load(tmp_path / "run" / "checkpoint.safetensors").model_state()
    assert float((learned["layer3.0.conv1.weight"] - given["layer3.0.conv1.weight"]).abs().max()) < 1e-5
    record = TrainRecord.read("run/train.json")
    assert (record.recipe.data.augment, record.validation_indices) == ("pad-crop-flip", (18, 20))
