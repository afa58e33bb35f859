"""BatchNorm after surgery: the statistics of what now comes in, for the same function."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .tracing import BatchNorm


def settle(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give every BatchNorm the mean and variance that its input has over `batches`, and change scale and shift so that
    in evaluation mode the module computes what it did.

    Factors that replace a layer have outputs of another mean and spread, for which the kernels may make up in
    evaluation mode; in training mode each batch is normalised by its own statistics, so that without this the first
    step would already be taken from another network.
    """
    moments: dict[nn.Module, Tensor] = {}

    def add(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].detach().transpose(0, 1).flatten(1).double()
        found = torch.stack([torch.full_like(values[:, 0], values.shape[1]), values.sum(1), values.square().sum(1)])
        moments[norm] = moments.get(norm, torch.zeros_like(found)) + found

    handles = [norm.register_forward_pre_hook(add) for norm in model.modules() if isinstance(norm, BatchNorm)]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    for norm, (count, total, squares) in moments.items():
        assert isinstance(norm, BatchNorm), "hooks sit on these alone"
        mean = total / count
        _describe(norm, mean, (squares / count - mean.square()).clamp(min=0))


def _describe(norm: BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """The same scale and shift of the input, written with these statistics."""
    assert norm.running_mean is not None, "a BatchNorm without statistics has nothing to settle"
    assert norm.running_var is not None, "a BatchNorm without statistics has nothing to settle"
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.detach().double() - scale * norm.running_mean.double()
    norm.weight.data = (scale * (variance + norm.eps).sqrt()).to(norm.weight.dtype)
    norm.bias.data = (shift + scale * mean).to(norm.bias.dtype)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
