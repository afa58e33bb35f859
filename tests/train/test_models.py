"""The built-in networks: their published sizes, and published weights where they lie beside the project."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankfold.errors import InputError
from rankfold.records import ModelSpec
from rankfold.train.models import build


def macs(model: nn.Module, channels: int, size: int) -> int:
    """Multiply-accumulates of all convolutions and linear layers for one image, counted by hooks."""
    total = 0

    def count(module, _inputs, output):
        nonlocal total
        total += module.weight[0].numel() * output[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model.eval()(torch.zeros(1, channels, size, size))
    return total


def test_dec3_has_72_million_macs():
    model = build(ModelSpec(name="dec3"), 1, 36)
    assert macs(model, 1, 32) == pytest.approx(72e6, rel=0.01)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["conv2v.weight"] == (128, 64, 5, 1)
    assert shapes["conv3h.weight"] == (256, 256, 1, 3)


def test_dec3_width_factor_and_widths():
    half = build(ModelSpec(name="dec3", arguments={"width": 0.5}), 3, 36)
    given = build(ModelSpec(name="dec3", arguments={"widths": [32, 64, 128]}), 3, 36)
    assert [p.shape for p in half.parameters()] == [p.shape for p in given.parameters()]


def test_dec8_runs_on_imagenet_sizes():
    model = build(ModelSpec(name="dec8", arguments={"width": 0.125}), 3, 1000).eval()
    assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)


@pytest.mark.parametrize(("name", "parameters"), [("resnet20", 269_722), ("resnet56", 853_018)])
def test_resnets_have_their_published_size(name, parameters):
    model = build(ModelSpec(name=name), 3, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_published_weights_load(name, shared_data):
    (path,) = (shared_data / "resnets-cifar10").glob(f"{name}-*.th")
    model = build(ModelSpec(name=name, arguments={"weights": str(path)}), 3, 10)
    assert float(model.state_dict()["bn1.running_var"].mean()) != 1.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec(name="dec9"), "unknown model 'dec9'; use one of dec3, dec8"),
        (ModelSpec(name="dec3", arguments={"widths": [1, 2]}), "widths must be 3 positive numbers"),
        (ModelSpec(name="dec3", arguments={"depth": 3}), "unexpected keyword argument 'depth'"),
        (ModelSpec(name="no.such.module:f"), "must be importable"),
        (ModelSpec(name="builtins:dict"), "expected a torch.nn.Module"),
        (ModelSpec(name="resnet20", arguments={"weights": "/no/such/file"}), "cannot read weights"),
    ],
)
def test_bad_models_are_one_clear_line(spec, message):
    with pytest.raises(InputError, match=message):
        build(spec, 3, 36)
