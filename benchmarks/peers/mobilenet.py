"""MobileNetV2 in CIFAR's shape, to ask what a tool does to depthwise networks: nothing is learned, only timed.

Sandler et al., CVPR 2018, table 2, with strides of 1 in the stem and the second stage, as for images of 32×32. Its
kernels have decaying spectra (`benchmarks.shapes`), which trained networks have and white noise has not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..shapes import BEFORE_RELU, decaying

# widening, blocks, stride of the first
_STAGES = ((1, 1, 1), (6, 2, 1), (6, 3, 2), (6, 4, 2), (6, 3, 1), (6, 3, 2), (6, 1, 1))
WIDTHS = (16, 24, 32, 64, 96, 160, 320)
_STEM, _LAST = 32, 1280


class InvertedResidual(nn.Module):
    """1×1 to `inner` channels (if wider), depthwise 3×3, 1×1 back; added to its input where the sizes agree."""

    def __init__(self, before: int, inner: int, out: int, stride: int) -> None:
        super().__init__()
        wide = [*_conv(before, inner, 1), nn.ReLU6()] if inner > before else []
        depthwise = [*_conv(inner, inner, 3, stride, groups=inner), nn.ReLU6()]
        self.branch = nn.Sequential(*wide, *depthwise, *_conv(inner, out, 1))
        self.is_added = stride == 1 and before == out

    def forward(self, x: Tensor) -> Tensor:
        """N×before×H×W to N×out×(H/stride)×(W/stride)."""
        y = self.branch(x)
        return x + y if self.is_added else y


def mobilenetv2(in_channels: int = 3, classes: int = 10, widths: Sequence[int] = WIDTHS, seed: int = 0) -> nn.Module:
    """Stages of these widths; weights drawn from `seed`."""
    layers: list[nn.Module] = [*_conv(in_channels, _STEM, 3), nn.ReLU6()]
    before = _STEM
    for (widening, blocks, first), out in zip(_STAGES, widths, strict=True):
        for block in range(blocks):
            layers.append(InvertedResidual(before, widening * before, out, 1 if block else first))
            before = out
    layers += [*_conv(before, _LAST, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_LAST, classes)]
    model = nn.Sequential(*layers)
    generator = np.random.default_rng(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            kernel = decaying(generator, tuple(module.weight.shape), BEFORE_RELU)
            module.weight.data = torch.from_numpy(kernel).float()
    nn.init.zeros_(model[-1].bias)  # pyright: ignore[reportArgumentType]
    return model.eval()


def _conv(before: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(before, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(out)]
