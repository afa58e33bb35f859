"""CIFAR ResNets (He et al., CVPR 2016, section 4.2) with option-A shortcuts: strided slice, channels padded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InputError


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.extra = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """N×i×H×W to N×o×(H/stride)×(W/stride)."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.extra == 0:
            return x
        strided = x[:, :, :: self.stride, :: self.stride]
        return F.pad(strided, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))


class ResNet(nn.Module):
    """Three stages of `blocks` basic blocks; parameter names are those of the published checkpoints."""

    def __init__(self, blocks: int, in_channels: int, classes: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], 1, blocks)
        self.layer2 = _stage(widths[0], widths[1], 2, blocks)
        self.layer3 = _stage(widths[1], widths[2], 2, blocks)
        self.linear = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """N×c×32×32 images to N×classes logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def _stage(in_channels: int, out_channels: int, stride: int, blocks: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


def resnet20(
    in_channels: int = 3,
    classes: int = 10,
    widths: tuple[int, int, int] = (16, 32, 64),
    weights: str | None = None,
) -> nn.Module:
    """ResNet-20; `weights` is the path of a published checkpoint."""
    return _resnet(3, in_channels, classes, widths, weights)


def resnet56(
    in_channels: int = 3,
    classes: int = 10,
    widths: tuple[int, int, int] = (16, 32, 64),
    weights: str | None = None,
) -> nn.Module:
    """ResNet-56; `weights` is the path of a published checkpoint."""
    return _resnet(9, in_channels, classes, widths, weights)


def _resnet(
    blocks: int, in_channels: int, classes: int, widths: tuple[int, int, int], weights: str | None
) -> nn.Module:
    model = ResNet(blocks, in_channels, classes, (widths[0], widths[1], widths[2]))
    if weights is not None:
        load_published(model, Path(weights))
    return model


def load_published(model: nn.Module, path: Path) -> None:
    """Load a published `.th` checkpoint: keys under `state_dict`, each with the prefix `module.`."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read weights {path}: {error.strerror}; check the path") from error
    except (RuntimeError, ValueError, EOFError, KeyError) as error:
        raise InputError(f"weights {path}: not a plain torch checkpoint ({str(error)[:80]})") from error
    state = {key.removeprefix("module."): value for key, value in stored.get("state_dict", stored).items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"weights {path}: {str(error).splitlines()[-1].strip()}; wrong network?") from error
