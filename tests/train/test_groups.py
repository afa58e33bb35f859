"""Coupled groups: filters that a residual add joins live and die together, with all that belongs to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rankfold.errors import InputError
from rankfold.export.from_torch import to_onnx
from rankfold.export.shrink import shrink
from rankfold.records import ModelSpec
from rankfold.train.models import build
from rankfold.train.models.resnet import ResNet
from rankfold.train.proximal import sparse_group_prox
from rankfold.train.regularizer import CompressionAware

CLOSE = 1e-4  # float32 norms near 1, written back through a division
IMAGES = torch.zeros(2, 3, 16, 16)


class PreActivation(nn.Module):
    """A stream that two convolutions write, and a BatchNorm of its own that belongs to neither."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.conv1 = nn.Conv2d(8, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.conv2(torch.relu(self.conv1(x)))
        x = nn.functional.adaptive_avg_pool2d(torch.relu(self.norm(x)), 2)
        return self.fc(torch.flatten(x, 1))


def coupled(model: nn.Module, **settings) -> tuple[CompressionAware, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return CompressionAware(model, optimizer, groups="coupled", example_input=IMAGES, **settings), optimizer


def idle_step(model: nn.Module, optimizer: torch.optim.Optimizer, regularizer: CompressionAware) -> None:
    """No gradient: only the proximal step changes anything."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    regularizer.step()


def make_ups(regularizer: CompressionAware) -> dict[tuple[str, ...], int]:
    return {tuple(layer.name for layer, _ in f.members): len(f.live()) for f in regularizer._shrinking.families}


@pytest.fixture
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return uneven(build(ModelSpec(name="resnet20"), 3, 10))


def uneven(model: nn.Module) -> nn.Module:
    """No two channels are scaled alike."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def test_the_groups_of_a_resnet_follow_its_shortcuts(resnet):
    found = make_ups(coupled(resnet, group=0.1)[0])
    streams = {stage: [f"layer{stage}.{block}.conv2" for block in range(3)] for stage in (1, 2, 3)}
    # option A: a stage's channels go on in the middle of the next one's, and the others begin there
    assert found[("conv1", *streams[1], *streams[2], *streams[3])] == 16
    assert found[(*streams[2], *streams[3])] == 16
    assert found[tuple(streams[3])] == 32
    inner = {(f"layer{stage}.{block}.conv1",) for stage in (1, 2, 3) for block in range(3)}
    assert set(found) - inner == {tuple(names) for names in found if len(names) > 1}
    assert len(found) == 12


def test_one_step_is_the_prox_of_the_joined_filters():
    torch.manual_seed(1)
    model = PreActivation()
    regularizer, optimizer = coupled(model, group=0.3, every=1)
    before = torch.cat([model.stem.weight.flatten(1), model.conv2.weight.flatten(1)], dim=1).detach()
    expected = sparse_group_prox(before, 0.1 * 0.3, 0.0, before.shape[1])
    idle_step(model, optimizer, regularizer)
    after = torch.cat([model.stem.weight.flatten(1), model.conv2.weight.flatten(1)], dim=1)
    torch.testing.assert_close(after, expected, atol=CLOSE, rtol=CLOSE)
    assert set(make_ups(regularizer)) == {("stem", "conv2"), ("conv1",)}


def test_a_dead_group_takes_all_that_belongs_to_it_along():
    torch.manual_seed(1)
    model = PreActivation()
    nn.init.uniform_(model.norm.bias, 0.5, 1.0)
    regularizer, optimizer = coupled(model, group=1e-6, every=5)
    for _ in range(4):  # a momentum in every direction
        optimizer.zero_grad()
        model(torch.randn(4, 3, 16, 16)).square().mean().backward()
        optimizer.step()
    dead = [1, 5]
    for convolution in (model.stem, model.conv2):
        convolution.weight.data[dead] = 0
        optimizer.state[convolution.weight]["momentum_buffer"][dead] = 0
    idle_step(model, optimizer, regularizer)
    for _ in range(2):
        idle_step(model, optimizer, regularizer)  # not due: only the momentum could bring them back
    columns = [4 * channel + pixel for channel in dead for pixel in range(4)]
    for zero in (
        model.norm.weight[dead],
        model.norm.bias[dead],
        model.conv1.weight[:, dead],
        model.fc.weight[:, columns],
    ):
        assert (zero == 0).all()
    assert (model.stem.weight[dead] == 0).all()
    assert (model.norm.weight[0] != 0).all()


def test_what_dies_is_folded_exactly_out_of_every_stage(resnet, tmp_path: Path):
    regularizer, optimizer = coupled(resnet, group=1.0, every=1, relative=True)
    weakest = [0, 3, 4]
    with torch.no_grad():
        for family in regularizer._shrinking.families:
            for layer, filters in family.members:
                for parameter in layer.owned():
                    parameter[filters[weakest].flatten()] *= 1e-3
    resnet.train()
    for _ in range(4):
        optimizer.zero_grad()
        resnet(torch.randn(8, 3, 16, 16)).square().mean().backward()
        optimizer.step()
        regularizer.step()
    regularizer.finish()
    live = {
        names: int(f.live().sum())
        for names, f in zip(make_ups(regularizer), regularizer._shrinking.families, strict=True)
    }
    sizes = make_ups(regularizer)
    assert all(live[names] <= sizes[names] - len(weakest) for names in sizes)
    dense, compact = tmp_path / "dense.onnx", tmp_path / "compact.onnx"
    to_onnx(resnet, torch.randn(2, 3, 16, 16), dense)
    plan, parity = shrink(dense, compact)
    assert all(check.passed for check in parity.checks)
    kept = {name: len(group.kept) for group in plan.groups.values() for name in group.members}
    for names, count in live.items():
        if len(names) == 1:
            assert kept.get(names[0], sizes[names]) == max(1, count), names
    stage_3 = sum(count for names, count in live.items() if "layer3.0.conv2" in names)
    assert kept["layer3.0.conv2"] == max(1, stage_3)


def test_holding_rounds_each_family_and_its_state_comes_back():
    torch.manual_seed(0)
    resnet = uneven(ResNet(1, 3, 10, (16, 32, 64)))  # a block a stage
    regularizer, optimizer = coupled(resnet, group=1.0, every=1, relative=True, tile=8, hold_at=3)
    resnet.train()
    for _ in range(5):
        optimizer.zero_grad()
        resnet(torch.randn(8, 3, 16, 16)).square().mean().backward()
        optimizer.step()
        regularizer.step()
    assert all(int(family.live().sum()) % 8 == 0 for family in regularizer._shrinking.families)
    held = regularizer.state_dict()["held"]
    again, _ = coupled(resnet, group=1.0, every=1, relative=True, tile=8, hold_at=3)
    again.load_state_dict(regularizer.state_dict())
    assert again.state_dict()["held"] == held


def test_a_model_without_removable_filters_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(InputError, match="no filters that could be removed; use groups='filter'"):
        coupled(model, group=0.1)
    with pytest.raises(InputError, match="groups='coupled' needs an example_input"):
        CompressionAware(model, torch.optim.SGD(model.parameters(), lr=0.1), groups="coupled")
