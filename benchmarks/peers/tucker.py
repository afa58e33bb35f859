"""tensorly-torch: convolutions as Tucker factors, run by its own layer or written as three convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckFailed
from ...export.tile import nearest_tile
from ...train.data import Dataset
from .installed import library, missing, quiet
from .tools import ModuleTool, Setting

RANKS = ({"parameters": 0.7}, {"parameters": 0.5}, {"parameters": 0.3}, {"energy": 0.95}, {"energy": 0.85})
ROUND_TO = (None, 16)
WRITTEN = ("convolutions", "factorized")


@dataclass(frozen=True)
class Tucker:
    """Every convolution with a kernel, at a share of its parameters, or of the energy of both its channel unfoldings.

    Ranks stay below a layer's MACs or the layer stays as it is. A kernel's height and width are not factorised.
    """

    name: str = "tensorly-torch, Tucker"
    lines: int = 8
    example: str = (
        "tests/test_factorized_convolution.py and the class's own text: FactorizedConv.from_conv(conv, rank=0.5, "
        "factorization='tucker', implementation='factorized', fixed_rank_modes='spatial') for each convolution; "
        "its three factors written as convolutions are the same function, and the runtime likes them better"
    )

    @property
    def missing(self) -> str | None:
        """Where either library is not installed."""
        return missing("tensorly", "tltorch")

    def settings(self, network: str, quick: bool) -> Sequence[Setting]:
        """Ranks by the library's rule and by energy, as they fall and rounded; MobileNetV2 has no kernel to factorise
        but depthwise ones and its stem.
        """
        if network == "mobilenetv2":
            return []
        points = [({"parameters": 0.5}, 16, WRITTEN[0])] if quick else list(product(RANKS, ROUND_TO, WRITTEN))
        return [
            Setting(self.name, _told(rank, round_to, written), {**rank, "round_to": round_to, "written": written})
            for rank, round_to, written in points
        ]

    def apply(self, model: nn.Module, example: Tensor, setting: Setting, data: Dataset) -> nn.Module:
        """The library's decomposition of every layer."""
        given = setting.arguments
        convolution = library("tltorch").FactorizedConv
        convolutions = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and _has_kernel(m)]
        changed = False
        with quiet():
            for name, layer in convolutions:
                ranks = _ranks(layer, given.get("parameters"), given.get("energy"), given["round_to"])
                if _macs(layer, *ranks) < math.prod(layer.weight.shape):
                    made = convolution.from_conv(
                        layer,
                        rank=(*ranks, *layer.kernel_size),
                        factorization="tucker",
                        implementation="factorized",
                        fixed_rank_modes="spatial",
                    )
                    model.set_submodule(name, made if given["written"] == "factorized" else _convolutions(layer, made))
                    changed = True
        if not changed:
            raise CheckFailed(f"{setting.name}: no layer has fewer MACs as factors")
        return model.eval()


def _told(rank: dict[str, float], round_to: int | None, written: str) -> str:
    ((what, share),) = rank.items()
    how = "as three convolutions" if written == "convolutions" else "as its own layers"
    return f"{share:.0%} of {what}{f', ranks on {round_to}' if round_to else ''}, {how}"


def _has_kernel(layer: nn.Conv2d) -> bool:
    return layer.groups == 1 and max(layer.kernel_size) > 1


def _ranks(layer: nn.Conv2d, parameters: float | None, energy: float | None, round_to: int | None) -> tuple[int, int]:
    """Ranks of the output and the input channels."""
    shape = layer.weight.shape
    if parameters is not None:
        validated = library("tensorly").tucker_tensor.validate_tucker_rank(tuple(shape), parameters, fixed_modes=[2, 3])
        ranks = [int(rank) for rank in validated[:2]]
    else:
        assert energy is not None, "one of the two"
        ranks = [_rank_of_energy(layer.weight.detach().transpose(0, mode).flatten(1), energy) for mode in (0, 1)]
    if round_to is not None:
        ranks = [nearest_tile(rank, round_to) for rank in ranks]
    out, into = (max(1, min(rank, size)) for rank, size in zip(ranks, shape[:2], strict=True))
    return out, into


def _rank_of_energy(unfolding: Tensor, energy: float) -> int:
    """The fewest singular values with this share of Σσ²."""
    squares = torch.linalg.svdvals(unfolding.double()).square()
    return int((squares.cumsum(0) < energy * squares.sum()).sum()) + 1


def _macs(layer: nn.Conv2d, out: int, into: int) -> int:
    """Of the three factors, for an output pixel; the first one runs where the input's pixels are."""
    o, i, *kernel = layer.weight.shape
    return math.prod(layer.stride) * i * into + math.prod(kernel) * into * out + out * o


def _convolutions(layer: nn.Conv2d, made: Any) -> nn.Sequential:
    """The same factors as three convolutions."""
    core, factors = made.weight.core.detach(), [factor.detach() for factor in made.weight.factors]
    kernel = torch.einsum("oiab,ha,wb->oihw", core, factors[2], factors[3])
    first = nn.Conv2d(layer.in_channels, kernel.shape[1], 1, bias=False)
    middle = nn.Conv2d(
        kernel.shape[1],
        kernel.shape[0],
        layer.kernel_size,  # pyright: ignore[reportArgumentType]
        layer.stride,  # pyright: ignore[reportArgumentType]
        layer.padding,  # pyright: ignore[reportArgumentType]
        layer.dilation,  # pyright: ignore[reportArgumentType]
        bias=False,
    )
    last = nn.Conv2d(kernel.shape[0], layer.out_channels, 1, bias=layer.bias is not None)
    weights = (factors[1].T[..., None, None], kernel, factors[0][..., None, None])
    for factor, weight in zip((first, middle, last), weights, strict=True):
        factor.weight.data = weight.contiguous()
    if layer.bias is not None:
        last.bias = layer.bias
    return nn.Sequential(first, middle, last)


TOOLS: Sequence[ModuleTool] = (Tucker(),)
