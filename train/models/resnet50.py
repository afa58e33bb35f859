"""ResNet-50 for ImageNet (He et al., CVPR 2016, table 1), the stride on the 3×3 convolution as in Goyal et al. 2017.

Names are those of torchvision's resnet50, so that its published weights load. γ of a block's last BatchNorm begins
at 1, not at 0: a filter with γ = 0 is a dead one to the group penalty.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (64, 128, 256, 512)
BLOCKS = (3, 4, 6, 3)
EXPANSION = 4
_WIDTH_MULTIPLE = 4


class Bottleneck(nn.Module):
    """1×1 down, 3×3, 1×1 up to four times the width; the shortcut is a 1×1 where the shape changes."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """N×i×H×W to N×4·width×(H/stride)×(W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + shortcut)


class BottleneckResNet(nn.Module):
    """Stem, four stages of bottlenecks, global average pooling, a linear layer."""

    def __init__(self, in_channels: int, classes: int, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = widths[0]
        stages: list[nn.Module] = []
        for width, count in zip(widths, blocks, strict=True):
            strides = [2 if stages else 1] + [1] * (count - 1)
            inputs = [channels] + [EXPANSION * width] * (count - 1)
            stages.append(nn.Sequential(*(Bottleneck(i, width, s) for i, s in zip(inputs, strides, strict=True))))
            channels = EXPANSION * width
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al., ICCV 2015: variance 2 / fan-out
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """N×c×H×W images, H and W from 32 up, to N×classes logits."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


def resnet50(
    in_channels: int = 3, classes: int = 1000, width: float = 1.0, blocks: Sequence[int] = BLOCKS
) -> nn.Module:
    """ResNet-50 with all widths × `width`; other `blocks` make it deeper or less so, (3, 4, 23, 3) is ResNet-101."""
    if not width > 0 or len(blocks) != len(WIDTHS) or min(blocks) < 1:
        raise ValueError(f"width must be above 0 and blocks four numbers from 1 up, found {width} and {list(blocks)}")
    widths = [max(_WIDTH_MULTIPLE, round(w * width / _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE) for w in WIDTHS]
    return BottleneckResNet(in_channels, classes, widths, blocks)
