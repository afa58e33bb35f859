"""A layer as it will be exported: its kernel with the BatchNorm that follows folded in, and the way back.

Before a BatchNorm a convolution's scale is free: the loss does not see it, so a penalty on it is evaded. What
counts is the folded kernel diag(γ/√(v+ε))·W. A step taken on it is written back so that the *scale* of each
filter goes into γ and only its *direction* into W: the running variance v stays right, and BatchNorm cannot
undo the shrinkage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .tracing import BatchNorm, ConvOrLinear

Scale = Literal["folded", "raw"]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, the BatchNorm that owns its scale, and the layer that feeds it."""

    name: str
    module: ConvOrLinear
    norm: BatchNorm | None
    producer: str | None
    has_groups: bool

    def scales(self) -> Tensor:
        """γ/√(v+ε) per output channel, 1 without BatchNorm; shape (o,)."""
        if self.norm is None:
            return torch.ones(self.module.weight.shape[0], device=self.module.weight.device)
        assert self.norm.running_var is not None
        return self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()

    def shift(self) -> Tensor | None:
        """The parameter that moves each output channel: β, or the bias; shape (o,)."""
        return self.norm.bias if self.norm is not None else self.module.bias

    def kernel(self, scale: Scale) -> Tensor:
        """The kernel that the penalty sees, o×i×h×w or o×i: folded for 'folded', else as it is."""
        weight = self.module.weight.detach()
        return weight * _by_row(self.scales().detach(), weight) if scale == "folded" else weight.clone()

    def write(self, kernel: Tensor, scale: Scale) -> None:
        """Store a changed kernel; with 'folded' its row norms go to γ. A zero row becomes a zero filter."""
        weight = self.module.weight.data
        if scale != "folded" or self.norm is None:
            weight.copy_(kernel)
            return
        scales = self.scales().detach()
        before = _row_norms(weight) * scales.abs()
        ratio = torch.where(before > 0, _row_norms(kernel) / before.clamp_min(torch.finfo(before.dtype).tiny), 0.0)
        divisor = ratio * scales
        direction = torch.where(divisor != 0, 1 / torch.where(divisor != 0, divisor, 1.0), 0.0)
        weight.copy_(kernel * _by_row(direction, kernel))
        self.norm.weight.data.mul_(ratio)

    def kill(self, dead: Tensor) -> None:
        """Zero the filters where `dead` (o,) is true, with all that belongs to them: γ, β, bias."""
        owned = [self.module.weight, self.module.bias]
        if self.norm is not None:
            owned += [self.norm.weight, self.norm.bias]
        for parameter in owned:
            if parameter is not None:
                parameter.data[dead] = 0

    def live(self) -> Tensor:
        """Which output channels have a non-zero filter; shape (o,), bool."""
        alive = _row_norms(self.module.weight.detach()) > 0
        return alive if self.norm is None else alive & (self.norm.weight.detach() != 0)


def _by_row(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _row_norms(kernel: Tensor) -> Tensor:
    return torch.linalg.vector_norm(kernel.flatten(1), dim=1)
