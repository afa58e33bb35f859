"""The built-in networks: their published sizes, and published weights where they lie beside the project. Others by
name, called as torchvision's and timm's factories are, and weights from files.
"""

from __future__ import annotations

import pickle
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
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


def test_resnet50_is_torchvisions():
    """25,557,032 parameters, 4.09 G multiply-accumulates (torchvision's documentation), and its names."""
    with torch.device("meta"):  # shapes alone
        model = build(ModelSpec(name="resnet50"), 3, 1000)
        assert macs(model, 3, 224) == pytest.approx(4.09e9, rel=0.001)
    assert sum(p.numel() for p in model.parameters()) == 25_557_032
    names = set(model.state_dict())
    assert {"layer1.0.downsample.0.weight", "layer1.0.downsample.1.running_var", "layer4.2.conv3.weight"} <= names
    assert len(names) == 320
    with pytest.raises(InputError, match="blocks four numbers from 1 up"):
        build(ModelSpec(name="resnet50", arguments={"blocks": [3, 4]}), 3, 10)


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


# --- by name ------------------------------------------------------------------------------------------------


def small(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(classes))


def torchvision_like(*, weights=None, progress: bool = True, **kwargs) -> nn.Module:
    """torchvision.models.resnet18's signature."""
    assert weights is None, "that would download"
    return small(3, kwargs["num_classes"])


def timm_like(model_name: str, pretrained: bool = False, **kwargs) -> nn.Module:
    """timm.create_model's signature."""
    assert (model_name, pretrained) == ("resnet18", False)
    return small(kwargs["in_chans"], kwargs["num_classes"])


def named(num_classes: int, in_chans: int = 3, width: int = 4) -> nn.Module:
    assert width == 8
    return small(in_chans, num_classes)


@pytest.fixture
def packages(monkeypatch):
    for name, attributes in (
        ("torchvision", {}),
        ("torchvision.models", {"resnet18": torchvision_like}),
        ("timm", {"create_model": timm_like}),
        ("mine", {"named": named, "narrow": lambda in_channels: nn.Identity()}),
    ):
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(
    ("name", "arguments", "channels"),
    [
        ("torchvision.models:resnet18", {}, 3),
        ("timm:create_model", {"model_name": "resnet18"}, 1),
        ("mine:named", {"width": 8}, 1),
    ],
)
def test_factories_are_called_by_their_own_names(packages, name, arguments, channels):
    model = build(ModelSpec(name=name, arguments=arguments), channels, 7)
    assert model(torch.zeros(2, channels, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("torchvision.models:resnet18", {}, "takes images of 3 channels, the data has 1"),
        ("timm:create_model", {"model_name": "resnet18", "pretrained": True}, "would download; give .* --weights FILE"),
        ("mine:narrow", {}, "unexpected keyword argument 'classes'"),
    ],
)
def test_what_a_factory_cannot_be_asked_is_said(packages, name, arguments, message):
    with pytest.raises(InputError, match=message):
        build(ModelSpec(name=name, arguments=arguments), 1, 7)


@pytest.mark.parametrize("form", ["safetensors", "torch", "wrapped"])
def test_weights_come_from_files(form, tmp_path):
    torch.manual_seed(1)
    origin = build(ModelSpec(name="resnet20"), 3, 10)
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(origin.state_dict(), path)
    else:
        state = {f"module.{name}": value for name, value in origin.state_dict().items()}
        torch.save({"state_dict": state, "epoch": 3} if form == "wrapped" else origin.state_dict(), path)
    spec = ModelSpec(name="resnet20", arguments={"weights": str(path)})
    loaded = build(spec, 3, 10).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in origin.state_dict().items())
    assert not torch.equal(build(spec, 3, 10, load=False).state_dict()["conv1.weight"], loaded["conv1.weight"])
    with pytest.raises(InputError, match=r"weights .*size mismatch for linear.*wrong network"):
        build(spec, 3, 12)


class _Harm:
    def __reduce__(self):
        return (pytest.fail, ("it was run",))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_files_that_are_no_weights(name, tmp_path):
    path = tmp_path / name
    for content in (b"", b"text", pickle.dumps(_Harm()), pickle.dumps([1, 2])):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"weights .*(not plain weights|expected tensors by name)") as caught:
            build(ModelSpec(name="resnet20", arguments={"weights": str(path)}), 3, 10)
        assert "\n" not in str(caught.value)
