"""A trained CIFAR ResNet cut to narrower stages: the strongest of its channels, with their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..train.models.resnet import BasicBlock, ResNet


def sliced(model: ResNet, widths: tuple[int, int, int]) -> ResNet:
    """A network of these widths that begins with weights of `model`.

    Of what a shortcut carries on all channels stay that the stage before kept, where its padding puts them; the others
    of a stage, and those inside of a block, are the ones with the largest filters, BatchNorm's scale included.
    """
    stages = [cast("list[BasicBlock]", list(stage)) for stage in (model.layer1, model.layer2, model.layer3)]
    made = ResNet(len(stages[0]), model.conv1.in_channels, model.linear.out_features, widths)
    came = list(range(model.conv1.in_channels))
    kept = _strongest(_sizes(model.conv1, model.bn1), widths[0], [])
    _copy(model.conv1, model.bn1, made.conv1, made.bn1, kept, came)
    for stage, narrow, width in zip(stages, (made.layer1, made.layer2, made.layer3), widths, strict=True):
        came, kept = kept, _carried(stage, kept, width)
        for block, small in zip(stage, cast("list[BasicBlock]", list(narrow)), strict=True):
            inner = _strongest(_sizes(block.conv1, block.bn1), width, [])
            _copy(block.conv1, block.bn1, small.conv1, small.bn1, inner, came)
            _copy(block.conv2, block.bn2, small.conv2, small.bn2, kept, inner)
            came = kept
    made.linear.weight.data = model.linear.weight.data[:, kept].clone()
    made.linear.bias.data = model.linear.bias.data.clone()
    return made


def _carried(stage: Sequence[BasicBlock], before: list[int], width: int) -> list[int]:
    """The channels of a stage that stay, in the order in which its shortcut pads those of the stage before."""
    old = stage[0].pad.padding[4]
    carried = [channel + old for channel in before]
    new = width - len(carried)
    sizes = torch.stack([_sizes(block.conv2, block.bn2) for block in stage]).sum(0)
    others = _strongest(sizes, new, carried)
    return [*others[: new // 2], *carried, *others[new // 2 :]]


def _sizes(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Squared norms of the filters with BatchNorm folded in; shape (o,)."""
    assert norm.running_var is not None, "a published network has statistics"
    return (conv.weight.flatten(1).square().sum(1) * norm.weight.square() / (norm.running_var + norm.eps)).detach()


def _strongest(sizes: Tensor, count: int, but: Sequence[int]) -> list[int]:
    ranked = [channel for channel in sizes.argsort(descending=True).tolist() if channel not in but]
    return sorted(ranked[:count])


def _copy(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, small: nn.Conv2d, narrow: nn.BatchNorm2d, out: list[int], came: list[int]
) -> None:
    small.weight.data = conv.weight.data[out][:, came].clone()
    narrow.load_state_dict({name: part[out] if part.ndim else part for name, part in norm.state_dict().items()})
