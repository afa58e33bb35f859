"""The layers that training makes small: each as it will be exported, its BatchNorm folded in, and the way back.

Before a BatchNorm a convolution's scale is free: the loss does not see it, so a penalty on it is evaded. What
counts is the folded kernel diag(γ/√(v+ε))·W. A step taken on it is written back so that the *scale* of each
filter goes into γ and only its *direction* into W: the running variance v stays right, and BatchNorm cannot
undo the shrinkage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..export.forms import Form, kernel_shape, resolve
from .tracing import BatchNorm, ConvOrLinear, Surroundings, surroundings

Scale = Literal["folded", "raw"]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, the BatchNorm that owns its scale, and the layer that feeds it.

    `form` is the one it is factored in, None for a grouped convolution, which is not factored. A layer without
    groups keeps all its output channels.
    """

    name: str
    module: ConvOrLinear
    norm: BatchNorm | None
    producer: Layer | None
    form: Form | None
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
        """The kernel that the penalty sees, o×i×h×w or o×i: folded for 'folded', else as it is.

        Weights that only ever see a channel of zeros are zero: they count for no rank.
        """
        weight = self.module.weight.detach()
        seen = weight * _by_row(self.scales().detach(), weight) if scale == "folded" else weight.clone()
        if self.producer is None:
            return seen
        live = self.producer.live()
        repeats = weight.shape[1] // len(live)  # flattened maps: each channel owns a run of columns
        mask = live.repeat_interleave(repeats).to(seen)
        return seen * mask.reshape(1, -1, *[1] * (weight.ndim - 2))

    def group_rows(self, kernel: Tensor) -> Tensor:
        """One group a row: the filter, then its shift (β or bias)."""
        shift = self.shift()
        rows = kernel.flatten(1)
        return rows if shift is None else torch.cat([rows, shift.detach()[:, None]], dim=1)

    def write_group_rows(self, rows: Tensor) -> Tensor:
        """Store the shifts of `group_rows`, and return the kernel in it, in the layer's shape."""
        shift, weight = self.shift(), self.module.weight
        if shift is not None:
            shift.data.copy_(rows[:, -1])
        return rows[:, : weight[0].numel()].reshape(weight.shape)

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

    def kill(self, dead: list[int]) -> None:
        """Zero these filters with all that belongs to them: γ, β, bias."""
        for parameter in self.owned():
            parameter.data[dead] = 0

    def owned(self) -> list[nn.Parameter]:
        """What belongs to the filters, row by row: weight, bias, γ and β."""
        modules = (self.module, self.norm) if self.norm is not None else (self.module,)
        return [p for module in modules for p in module.parameters(recurse=False)]

    def is_silenced(self) -> bool:
        """Whether a filter that is not zero has γ = 0: one that has not begun to learn looks dead."""
        if self.norm is None:
            return False
        return bool(((self.norm.weight.detach() == 0) & (_row_norms(self.module.weight.detach()) > 0)).any())

    def live(self) -> Tensor:
        """Which output channels have a non-zero filter; shape (o,), bool."""
        alive = _row_norms(self.module.weight.detach()) > 0
        return alive if self.norm is None else alive & (self.norm.weight.detach() != 0)


def _by_row(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _row_norms(kernel: Tensor) -> Tensor:
    return torch.linalg.vector_norm(kernel.flatten(1), dim=1)


def matricize(form: Form, kernel: Tensor) -> Tensor:
    """A kernel of 2 to 4 dimensions as the matrix of a form."""
    return form.matricize(kernel.reshape(kernel_shape(kernel.shape)))


def tensorize(form: Form, matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of `matricize`, for a kernel of the shape of `like`."""
    return form.tensorize(matrix, kernel_shape(like.shape)).reshape(like.shape)


# --- the layers of a model ----------------------------------------------------------------------------------


def layers_of(model: nn.Module, form: str, skip: tuple[str, ...], *, needs_trace: bool) -> dict[str, Layer]:
    """Every Conv1d, Conv2d and Linear of `model` by name, in its order, but those in `skip`."""
    modules = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)}
    unknown = [name for name in skip if name not in modules]
    if unknown:
        raise InputError(f"skip names no layer '{unknown[0]}'; the layers are {', '.join(modules)}")
    around = surroundings(model) if needs_trace else {}
    layers: dict[str, Layer] = {}
    for name in _producers_first([name for name in modules if name not in skip], around):
        layers[name] = _layer(name, modules[name], around.get(name), form, layers)
    if not layers:
        raise InputError(f"{type(model).__name__} has no Conv1d, Conv2d or Linear layer to make small")
    return {name: layers[name] for name in modules if name in layers}


def _producers_first(names: list[str], around: Mapping[str, Surroundings]) -> list[str]:
    """The names so that each stands behind the layer that feeds it."""
    ordered: dict[str, None] = {}

    def visit(name: str) -> None:
        seen = around.get(name)
        if seen is not None and seen.producer in names and seen.producer not in ordered:
            visit(seen.producer)
        ordered[name] = None

    for name in names:
        visit(name)
    return list(ordered)


def _layer(name: str, module: ConvOrLinear, seen: Surroundings | None, form: str, layers: Mapping[str, Layer]) -> Layer:
    grouped = getattr(module, "groups", 1) != 1
    producer = layers.get(seen.producer or "") if seen is not None and not grouped else None
    if producer is not None and module.weight.shape[1] % producer.module.weight.shape[0]:
        producer = None
    return Layer(
        name=name,
        module=module,
        norm=seen.norm if seen is not None else None,
        producer=producer,
        form=None if grouped else resolve(form, kernel_shape(module.weight.shape)),
        has_groups=seen is not None and not seen.is_output and not grouped,
    )


def strengths(layers: Mapping[str, Layer], base: float, factors: Mapping[str, float]) -> dict[str, float]:
    """`base` for each layer, times its factor where it is named."""
    unknown = [name for name in factors if name not in layers]
    if unknown:
        raise InputError(f"factors name no layer '{unknown[0]}'; the layers are {', '.join(layers)}")
    return {name: base * factors.get(name, 1.0) for name in layers}


def parameter_groups(optimizer: torch.optim.Optimizer, layers: Mapping[str, Layer]) -> dict[str, int]:
    """Index of the optimizer's parameter group that holds each layer's weight."""
    index_of = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    missing = [name for name, layer in layers.items() if id(layer.module.weight) not in index_of]
    if missing:
        raise InputError(f"layer '{missing[0]}' is not in the optimizer; add its parameters, or name it in skip")
    return {name: index_of[id(layer.module.weight)] for name, layer in layers.items()}


def record_pixels(layers: Mapping[str, Layer]) -> dict[str, int]:
    """Output pixels of every layer for one image, filled in by the first forward."""
    pixels: dict[str, int] = {}

    def recorder(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def record(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            channels_axis = 1 if isinstance(layers[name].module, nn.Conv1d | nn.Conv2d) else output.ndim - 1
            pixels.setdefault(name, output[0].numel() // output.shape[channels_axis])

        return record

    for name, layer in layers.items():
        layer.module.register_forward_hook(recorder(name))
    return pixels
