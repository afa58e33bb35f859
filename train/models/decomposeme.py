"""DecomposeMe networks (Alvarez & Petersson, arXiv 1606.05426): a k×k convolution becomes k×1, then 1×k.

`dec3` and `dec8` are the networks of the compression-aware training paper, here with BatchNorm and ReLU after
each one-dimensional convolution.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

DEC3_WIDTHS = (64, 128, 256)
DEC3_KERNELS = (5, 5, 3)
DEC8_WIDTHS = (64, 128, 256, 256, 512, 512, 512, 512)
DEC8_KERNELS = (7, 5, 3, 3, 3, 3, 3, 3)
DEC8_POOL_AFTER = (0, 1, 3, 5)
WIDTH_MULTIPLE = 4


def dec3(in_channels: int = 1, classes: int = 36, width: float = 1.0, widths: Sequence[int] | None = None) -> nn.Module:
    """Three pairs, widths 64/128/256 × `width` (or `widths` as they are), max-pooling between the pairs."""
    return _decomposeme(in_channels, classes, _scaled(DEC3_WIDTHS, width, widths), DEC3_KERNELS, (0, 1))


def dec8(
    in_channels: int = 3, classes: int = 1000, width: float = 1.0, widths: Sequence[int] | None = None
) -> nn.Module:
    """Eight pairs for 224×224 images, four max-poolings, global average pooling."""
    return _decomposeme(in_channels, classes, _scaled(DEC8_WIDTHS, width, widths), DEC8_KERNELS, DEC8_POOL_AFTER)


def _scaled(published: Sequence[int], width: float, widths: Sequence[int] | None) -> list[int]:
    if widths is not None:
        if len(widths) != len(published) or min(widths) < 1:
            raise ValueError(f"widths must be {len(published)} positive numbers, found {list(widths)}")
        return list(widths)
    if not width > 0:
        raise ValueError(f"width must be above 0, found {width}")
    return [max(WIDTH_MULTIPLE, round(w * width / WIDTH_MULTIPLE) * WIDTH_MULTIPLE) for w in published]


def _decomposeme(
    in_channels: int, classes: int, widths: Sequence[int], kernels: Sequence[int], pool_after: Sequence[int]
) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (out_channels, kernel) in enumerate(zip(widths, kernels, strict=True)):
        number = index + 1
        for part, shape in (("v", (kernel, 1)), ("h", (1, kernel))):
            padding = (shape[0] // 2, shape[1] // 2)
            layers[f"conv{number}{part}"] = nn.Conv2d(in_channels, out_channels, shape, padding=padding, bias=False)
            layers[f"bn{number}{part}"] = nn.BatchNorm2d(out_channels)
            layers[f"relu{number}{part}"] = nn.ReLU(inplace=True)
            in_channels = out_channels
        if index in pool_after:
            layers[f"pool{number}"] = nn.MaxPool2d(2)
    layers["gap"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(in_channels, classes)
    return nn.Sequential(layers)
