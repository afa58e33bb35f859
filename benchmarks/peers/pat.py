"""torchao's pruning-aware training: singular values shrunk or cut by its optimizer, then an SVD of what it left."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckFailed
from ...export.tile import up_to_tile
from ...train.data import Dataset
from .installed import library, missing, quiet
from .learning import AUGMENT, MOMENTUM, RATE, WEIGHT_DECAY, learn
from .tools import ModuleTool, Setting

STEPS, QUICK_STEPS, WARMUP = 200, 20, 10
NUCLEAR = (0.4, 0.7, 1.0)  # strengths; what goes off a singular value in the end is that times Σ of the steps' rates
CUT = (0.25, 0.5, 0.7)  # shares of the singular values that go
ROUND_TO = (None, 16)


@dataclass(frozen=True)
class Pat:
    """Kernels as o×(i h w), the only matrix it knows: a kernel to r channels and a 1×1 from them."""

    name: str = "torchao PAT, then SVD"
    lines: int = 16
    example: str = (
        "torchao/prototype/pat/README.md, Optimizer-only interface: parameter groups with group_type and prox_type "
        "into torch.optim.SGD, then PruneOptimizer(base_optimizer, warmup_steps=10, reg_lambda=2e-4); here SVDGrouper "
        "with ProxNuclearNorm or MinRankConstraint, and ranks as its insert_svd_modules_ takes them"
    )

    @property
    def missing(self) -> str | None:
        """Where it is not installed, or has no PAT."""
        return missing("torchao.prototype.pat.optim")

    def settings(self, network: str, quick: bool) -> Sequence[Setting]:
        """The nuclear norm at three strengths, and a share of the ranks cut in steps; only where there are labels."""
        if network not in AUGMENT:
            return []
        ways: list[dict[str, Any]] = [{"prox_type": "ProxNuclearNorm", "reg_lambda": strength} for strength in NUCLEAR]
        ways += [
            {"prox_type": "MinRankConstraint", "min_sparsity": share, "min_sparsity_schedule": True} for share in CUT
        ]
        points = [(ways[-2], 16)] if quick else list(itertools.product(ways, ROUND_TO))
        learning = {"steps": QUICK_STEPS if quick else STEPS, "augment": AUGMENT[network]}
        return [
            Setting(self.name, _told(way, round_to), {"way": way, "round_to": round_to, **learning})
            for way, round_to in points
        ]

    def apply(self, model: nn.Module, example: Tensor, setting: Setting, data: Dataset) -> nn.Module:
        """Its optimizer's steps, which are beside the budget of fine-tuning, then two layers for one."""
        given = setting.arguments
        layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and _can_be_factored(m)}
        with quiet():
            optimizer = _optimizer(model, [layer.weight for layer in layers.values()], given["way"], given["steps"])
            learn(model, data, optimizer, steps=given["steps"], augment=given["augment"])
        changed = False
        for name, layer in layers.items():
            rank = int(optimizer.state[layer.weight]["sv_count"])
            if given["round_to"] is not None:
                rank = up_to_tile(rank, given["round_to"])
            o, *rest = layer.weight.shape
            if rank > 0 and rank * (o + torch.Size(rest).numel()) < layer.weight.numel():
                model.set_submodule(name, _in_two(layer, rank))
                changed = True
        if not changed:
            raise CheckFailed(f"{setting.name}: no layer lost rank enough to have fewer MACs as factors")
        return model.eval()


def _told(way: Mapping[str, Any], round_to: int | None) -> str:
    what = (
        f"nuclear norm {way['reg_lambda']:g}" if "reg_lambda" in way else f"{way['min_sparsity']:.0%} of the ranks cut"
    )
    return what + (f", ranks up to {round_to}" if round_to else "")


def _can_be_factored(layer: nn.Conv2d) -> bool:
    return layer.groups == 1 and min(layer.weight.shape[:2]) > 3


def _optimizer(model: nn.Module, weights: Sequence[Tensor], way: Mapping[str, Any], steps: int) -> Any:
    """As the README sets it up."""
    mine = {id(weight) for weight in weights}
    others = [parameter for parameter in model.parameters() if id(parameter) not in mine]
    groups = [{"params": list(weights), "group_type": "SVDGrouper", **way}, {"params": others}]
    base = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    # its schedule must end; that it ends a step after the last one keeps every step a pruning one
    return library("torchao.prototype.pat.optim").PruneOptimizer(base, WARMUP, healing_start_step=steps + 1)


def _in_two(layer: nn.Conv2d, rank: int) -> nn.Sequential:
    """A kernel to `rank` channels, then 1×1."""
    left, values, right = torch.linalg.svd(layer.weight.detach().flatten(1), full_matrices=False)
    root = values[:rank].sqrt()
    first = nn.Conv2d(
        layer.in_channels,
        rank,
        layer.kernel_size,  # pyright: ignore[reportArgumentType]
        layer.stride,  # pyright: ignore[reportArgumentType]
        layer.padding,  # pyright: ignore[reportArgumentType]
        layer.dilation,  # pyright: ignore[reportArgumentType]
        bias=False,
    )
    second = nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None)
    first.weight.data = (root[:, None] * right[:rank]).reshape(first.weight.shape).contiguous()
    second.weight.data = (left[:, :rank] * root)[..., None, None].contiguous()
    if layer.bias is not None:
        second.bias = layer.bias
    return nn.Sequential(first, second)


TOOLS: Sequence[ModuleTool] = (Pat(),)
