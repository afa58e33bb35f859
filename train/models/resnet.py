"""CIFAR ResNets (He et al., CVPR 2016, section 4.2) with option-A shortcuts: strided slice, channels padded."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        extra = out_channels - in_channels
        self.pad = nn.ZeroPad3d((0, 0, 0, 0, extra // 2, extra - extra // 2))  # a module: a plan can change it

    def forward(self, x: Tensor) -> Tensor:
        """N×i×H×W to N×o×(H/stride)×(W/stride)."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and not any(self.pad.padding):
            return x
        return self.pad(x[:, :, :: self.stride, :: self.stride])


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


def resnet20(in_channels: int = 3, classes: int = 10, widths: Sequence[int] = WIDTHS) -> nn.Module:
    """ResNet-20."""
    return ResNet(3, in_channels, classes, (widths[0], widths[1], widths[2]))


def resnet56(in_channels: int = 3, classes: int = 10, widths: Sequence[int] = WIDTHS) -> nn.Module:
    """ResNet-56."""
    return ResNet(9, in_channels, classes, (widths[0], widths[1], widths[2]))
