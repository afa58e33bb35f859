"""A small ONNX network back in torch: the same outputs, narrower and factorised, and it goes on learning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankfold.errors import InputError
from rankfold.export.compress import Job
from rankfold.export.from_torch import to_onnx
from rankfold.export.parity import run
from rankfold.export.shrink import prepare_dense, shrink
from rankfold.export.wish import Wish
from rankfold.records import Compressed
from rankfold.train.compact import compact, reshaped
from rankfold.train.models.resnet import ResNet
from rankfold.train.regularizer import CompressionAware

X = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 3, 12, 12)).astype(np.float32))


class Residual(nn.Module):
    """A stem, a residual block with a depthwise layer, a classifier; `fixed` writes a width into the code."""

    def __init__(self, fixed: bool = False) -> None:
        super().__init__()
        self.fixed = fixed
        self.stem, self.bn = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv1, self.bn1 = nn.Conv2d(16, 24, (3, 5), 2, (1, 2)), nn.BatchNorm2d(24)
        self.deep, self.bn2 = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24)
        self.conv2, self.bn3 = nn.Conv2d(24, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.deep(y)))
        if self.fixed:
            y = y + torch.ones(1, 24, 1, 1)
        x = F.relu(x[:, :, ::2, ::2] + self.bn3(self.conv2(y)))
        return self.fc(x.mean((2, 3)))


def trained(model: nn.Module) -> nn.Module:
    """Statistics and scales as after some training; the same kernels whatever ran before."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    """The network as a file; read only."""
    path = tmp_path_factory.mktemp("dense") / "dense.onnx"
    to_onnx(trained(Residual()), X[:2], path)
    return path


def compressed(dense: Path, folder: Path, wish: Wish, data: np.ndarray | None = None) -> tuple[Path, Compressed]:
    path = None
    if data is not None:
        path = folder / "data.npz"
        (name,) = (entry.name for entry in onnx.load(dense).graph.input)
        np.savez(path, **{name: data}, allow_pickle=False)
    summary, *_, small = Job(wish, data=path).into(folder, dense, "small.onnx")
    return folder / small, Compressed.read(folder / summary)


def outputs(path: Path) -> np.ndarray:
    (name,) = (entry.name for entry in onnx.load(path).graph.input)
    return run(path.read_bytes(), {name: X.numpy()})[0]


@pytest.mark.parametrize("form", ["channel", "input-channel", "spatial", "tucker-2", "auto"])
def test_a_compressed_file_goes_back_into_the_module(form, dense, tmp_path):
    model = trained(Residual())
    forms = ("channel", "spatial", "tucker-2", "linear") if form == "auto" else (form,)
    data = np.random.default_rng(1).normal(size=(64, 3, 12, 12)).astype(np.float32)
    path, done = compressed(dense, tmp_path, Wish(forms=forms, macs=0.7, prune=0.15), data)
    assert any(layer.form != "dense" for layer in done.plan.layers.values())
    small = compact(model, path, done.plan, X)
    np.testing.assert_allclose(small(X).detach().numpy(), outputs(path), atol=1e-4)
    assert small.get_submodule("conv1") is not model.get_submodule("conv1")
    sizes = [sum(p.numel() for p in one.parameters()) for one in (small, model)]
    assert sizes[0] < 0.85 * sizes[1]
    learns(small)


def learns(small: nn.Module) -> None:
    """A few steps in training mode lower the loss; BatchNorm has its statistics still."""
    small.train()
    labels, optimizer = torch.arange(6) % 5, torch.optim.SGD(small.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(small(X), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert any(isinstance(module, nn.BatchNorm2d) for module in small.modules())


def test_channels_that_a_shortcut_pads_go_too(tmp_path):
    """The stream of a ResNet with option-A shortcuts, whose channels come and go in the middle of others."""
    model = trained(ResNet(2, 3, 5, (8, 16, 24)))
    gone = {
        "layer2": [0, 2, 3, 15],
        "layer3": [1, *(4 + channel for channel in (0, 2, 3, 15))],
    }  # 4: where it pads them
    for stage, channels in gone.items():
        for norm in (model.get_submodule(f"{stage}.{block}.bn2") for block in (0, 1)):
            assert isinstance(norm, nn.BatchNorm2d)
            for tensor in (norm.weight, norm.bias):
                tensor.data[channels] = 0
    to_onnx(model, X[:2], tmp_path / "dense.onnx")
    prepare_dense(tmp_path / "dense.onnx")
    path = tmp_path / "small.onnx"
    plan, _ = shrink(tmp_path / "dense.onnx", path, form="channel", energy=1.0, tile=1)
    small = compact(model, path, plan, X)
    padded = [small.get_submodule(f"{stage}.0.pad").padding[4:] for stage in gone]  # pyright: ignore
    assert padded == [(1, 3), (3, 4)]
    np.testing.assert_allclose(small(X).detach().numpy(), outputs(path), atol=1e-4)
    learns(small)
    again = reshaped(model, plan, small.state_dict())
    again.load_state_dict(small.state_dict())
    assert torch.equal(again.eval()(X), small.eval()(X))


def test_the_regularizer_hands_out_what_export_would_write():
    model = trained(Residual())
    regularizer = CompressionAware(
        model, torch.optim.SGD(model.parameters(), lr=0.5), low_rank=0.4, group=0.08, relative=True, every=1
    )
    for _ in range(3):
        loss = model(X).square().mean()
        loss.backward()
        regularizer.optimizer.step()
        regularizer.optimizer.zero_grad()
        regularizer.step()
    regularizer.finish()
    model.eval()
    small = regularizer.compact(X)
    wanted = model(X).detach()
    off = (small(X).detach() - wanted).abs().max()
    assert float(off) < 1e-3 * float(wanted.abs().max())
    assert sum(p.numel() for p in small.parameters()) < 0.9 * sum(p.numel() for p in model.parameters())


def test_what_cannot_be_put_back_is_said(dense, tmp_path):
    path, done = compressed(dense, tmp_path, Wish(macs=0.8))
    compact(trained(Residual()), path, done.plan, X)
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    with pytest.raises(InputError, match="the plan is of another model: it names layer 'stem'"):
        compact(other, path, done.plan, X)
    path, done = compressed(dense, tmp_path, Wish(prune=0.3))
    model = trained(Residual(fixed=True))
    with pytest.raises(InputError, match="the module's own code fixes a width that the plan changes"):
        compact(model, path, done.plan, X)
    changed = onnx.load(path)
    weight = next(one for one in changed.graph.initializer if one.name == "fc.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), "fc.weight"))
    model = trained(Residual())
    small = compact(model, changed, done.plan, X)
    assert float((small(X) - model(X)).detach().abs().max()) > 1e-3
    del changed.graph.initializer[:]
    with pytest.raises(InputError, match="the file holds no weights of layer 'stem'"):
        compact(model, changed, done.plan, X)
