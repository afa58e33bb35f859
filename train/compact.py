"""A small ONNX network put back into the torch module it came from: narrower and factorised layers, BatchNorm kept.

The plan says which channels stayed and how each layer is written, the file holds the numbers. There BatchNorm is part
of the kernels; here it goes on with its own scale and statistics, so that fine-tuning goes on where training stopped:
the last factor is divided by the scale s = γ/√(v+ε), and the shift becomes the file's bias plus s times the mean.
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import InputError
from ..export.forms import kernel_shape, resolve_any
from ..records import LayerTime, Plan, kept_by_layer
from .tracing import BatchNorm, ConvOrLinear, padded_to, surroundings

_SUFFIXES = (("v", "u"), ("v", "c", "u"))
_SAME = 1e-3  # largest relative difference of outputs: float32, in another order, a BatchNorm apart


def compact(model: nn.Module, small: Path | onnx.ModelProto, plan: Plan, example_input: Tensor) -> nn.Module:
    """A copy of `model` that computes what `small` does, in evaluation mode, ready for fine-tuning.

    `small` and `plan` are what `rankfold export` or `rankfold compress` wrote for this model; `example_input` is a
    batch of its input. Raises InputError for a plan of another model, and where the module cannot be made narrower: its
    own code fixes a width, or a BatchNorm stands alone.
    """
    weights = _arrays(small)
    made = copy.deepcopy(model).eval()
    around = surroundings(made)
    layers = {n: m for n, m in made.named_modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)}
    unknown = [name for name in plan.layers if name not in layers]
    if unknown:
        raise InputError(f"the plan is of another model: it names layer '{unknown[0]}', the module has no such layer")
    kept = kept_by_layer(plan.groups)
    _pad_fewer(made, kept)
    names = {id(module): name for name, module in made.named_modules()}
    for name, layer in layers.items():
        norm = around[name].norm if name in around else None
        kernels = _kernels(name, layer, weights)
        channels = kept.get(name, list(range(layer.weight.shape[0])))
        if len(channels) != len(kernels[-1]):
            raise InputError(f"layer '{name}': the plan keeps {len(channels)} channels, the file {len(kernels[-1])}")
        bias = weights.get(f"{name}_u.bias", weights.get(f"{name}.bias"))
        if norm is not None:
            narrow, scale = _narrow_norm(norm, channels, bias)
            kernels[-1] = kernels[-1] / scale.reshape(-1, *[1] * (kernels[-1].ndim - 1))
            made.set_submodule(names[id(norm)], narrow)
            bias = None
        elif bias is None and layer.bias is not None:
            bias = layer.bias.detach().numpy()[channels]
        made.set_submodule(name, _rebuilt(name, layer, kernels, bias, plan))
    _require_same(made, small, example_input)
    return made.train(model.training)


def reshaped(model: nn.Module, plan: Plan, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` with the factors and widths that `compact` gave it by this plan: the shapes of `state`, which
    may then be loaded. Raises InputError for the state of another network.
    """
    made = copy.deepcopy(model)
    _pad_fewer(made, kept_by_layer(plan.groups))
    for name, module in list(made.named_modules()):
        if isinstance(module, ConvOrLinear):
            factors = sorted(key for key in state if re.fullmatch(rf"{re.escape(name)}(\.\d)?\.weight", key))
            if not factors or (len(factors) > 1 and name not in plan.layers):
                raise InputError(f"the checkpoint is of another network: it has no layer '{name}' as the plan says")
            bias = state.get(factors[-1].removesuffix("weight") + "bias")
            kernels = [state[key].numpy() for key in factors]
            made.set_submodule(name, _rebuilt(name, module, kernels, None if bias is None else bias.numpy(), plan))
        elif isinstance(module, BatchNorm) and f"{name}.weight" in state:
            made.set_submodule(name, type(module)(len(state[f"{name}.weight"]), module.eps, module.momentum))
    return made


def exported(
    model: nn.Module,
    example_input: Tensor,
    *,
    form: str,
    energy: float,
    tile: int,
    table: Sequence[LayerTime] | None = None,
) -> tuple[onnx.ModelProto, Plan]:
    """`model` as `rankfold export` would write it, with its plan."""
    from ..export.from_torch import to_onnx  # late: training alone needs no onnx exporter
    from ..export.shrink import prepare_dense, shrink

    with tempfile.TemporaryDirectory() as folder:
        dense, small = Path(folder) / "dense.onnx", Path(folder) / "compact.onnx"
        to_onnx(copy.deepcopy(model).cpu().eval(), example_input.cpu(), dense)
        prepare_dense(dense)
        plan, _ = shrink(dense, small, form=form, energy=energy, tile=tile, table=table)
        return onnx.load(small), plan


def _pad_fewer(model: nn.Module, kept: Mapping[str, Sequence[int]]) -> None:
    """Of the channels of zeros that it puts beside others, those that stay: before any layer is made narrower."""
    for name, beside in padded_to(model).items():
        pad, layer = model.get_submodule(name), model.get_submodule(beside)
        assert isinstance(pad, nn.ZeroPad3d), "found as one"
        assert isinstance(layer, ConvOrLinear), "found as one"
        *around, before, after = pad.padding
        width = layer.weight.shape[0]
        channels = kept.get(beside, range(width))
        fewer = sum(one < before for one in channels), sum(one >= width - after for one in channels)
        model.set_submodule(name, nn.ZeroPad3d((*around, *fewer)))  # pyright: ignore[reportArgumentType]


def _arrays(small: Path | onnx.ModelProto) -> dict[str, NDArray]:
    proto = onnx.load(small) if isinstance(small, Path) else small
    turned = {
        node.input[1]
        for node in proto.graph.node
        if node.op_type == "MatMul"
        or (node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute))
    }
    stored = {entry.name: np.array(onnx.numpy_helper.to_array(entry)) for entry in proto.graph.initializer}
    return {name: array.T if name in turned else array for name, array in stored.items()}


def _kernels(name: str, layer: ConvOrLinear, weights: Mapping[str, NDArray]) -> list[NDArray]:
    """The layer's kernel, or its factors in the order they run, with the module's own number of dimensions."""
    if f"{name}.weight" in weights:
        return [weights[f"{name}.weight"]]
    for suffixes in reversed(_SUFFIXES):
        found = [f"{name}_{suffix}.weight" for suffix in suffixes]
        if all(one in weights for one in found):
            return [weights[one].reshape(weights[one].shape[: layer.weight.ndim]) for one in found]
    raise InputError(f"the file holds no weights of layer '{name}'; give the file that the plan belongs to")


def _narrow_norm(norm: BatchNorm, channels: Sequence[int], bias: NDArray | None) -> tuple[BatchNorm, NDArray]:
    """The BatchNorm of the channels that stay, and its scale; where that is 0 the layer is divided by 1."""
    narrow = type(norm)(len(channels), norm.eps, norm.momentum).eval()
    state = {name: tensor[channels] if tensor.ndim else tensor for name, tensor in norm.state_dict().items()}
    narrow.load_state_dict(state)
    mean, variance = narrow.running_mean, narrow.running_var
    assert mean is not None, "a BatchNorm without statistics is not folded"
    assert variance is not None, "a BatchNorm without statistics is not folded"
    scale = narrow.weight.detach() / (variance + narrow.eps).sqrt()
    if bias is not None:
        narrow.bias.data = torch.from_numpy(bias) + scale * mean
    return narrow, np.where(scale.numpy() == 0, 1, scale.numpy())


def _rebuilt(name: str, layer: ConvOrLinear, kernels: Sequence[NDArray], bias: NDArray | None, plan: Plan) -> nn.Module:
    if len(kernels) == 1:
        return _module(layer, kernels[0], bias, frozenset("hw"))
    o, i = len(kernels[-1]), kernels[0].shape[1]
    form = resolve_any(plan.layers[name].form, (o, i, *kernel_shape(layer.weight.shape)[2:]))
    last = len(kernels) - 1
    factors = [
        _module(layer, kernel, bias if index == last else None, axes)
        for index, (kernel, axes) in enumerate(zip(kernels, form.walked, strict=True))
    ]
    assert all(one.shape[0] == two.shape[1] for one, two in pairwise(kernels)), f"ranks of layer {name!r} differ"
    return nn.Sequential(*factors)


def _module(layer: ConvOrLinear, kernel: NDArray, bias: NDArray | None, walked: frozenset[str]) -> ConvOrLinear:
    """A layer like the given one with this kernel: stride, dilation and padding on the walked axes only."""
    if isinstance(layer, nn.Linear):
        made = nn.Linear(kernel.shape[1], kernel.shape[0], bias is not None)
    else:
        mine = [axis in walked for axis in "hw"[: kernel.ndim - 2]]
        padding = layer.padding
        if not isinstance(padding, str):
            padding = _on(mine, padding, 0)
        groups = layer.groups
        if groups > 1 and kernel.shape[1] == layer.weight.shape[1]:  # whole groups are gone: a depthwise channel each
            groups = kernel.shape[0] * groups // layer.weight.shape[0]
        made = type(layer)(
            kernel.shape[1] * groups,
            kernel.shape[0],
            tuple(kernel.shape[2:]),  # pyright: ignore[reportArgumentType]
            _on(mine, layer.stride, 1),  # pyright: ignore[reportArgumentType]
            padding,  # pyright: ignore[reportArgumentType]
            _on(mine, layer.dilation, 1),  # pyright: ignore[reportArgumentType]
            groups,
            bias is not None,
            layer.padding_mode if any(mine) else "zeros",
        )
    made.weight.data = torch.from_numpy(np.ascontiguousarray(kernel, np.float32))
    if bias is not None:
        made.bias.data = torch.from_numpy(np.ascontiguousarray(bias, np.float32))  # pyright: ignore[reportOptionalMemberAccess]
    return made


def _on(mine: Sequence[bool], values: Sequence[int], default: int) -> tuple[int, ...]:
    return tuple(value if has else default for value, has in zip(values, mine, strict=True))


def _require_same(made: nn.Module, small: Path | onnx.ModelProto, example_input: Tensor) -> None:
    """Hold the module against the file. A width fixed by the module's own code shows here."""
    from .onnx_module import OnnxModule

    bridge = OnnxModule(onnx.load(small) if isinstance(small, Path) else small)
    with torch.no_grad():
        (wanted,) = bridge({bridge.inputs[0]: example_input})
        try:
            found = made(example_input)
        except RuntimeError as error:
            raise InputError(
                f"the module's own code fixes a width that the plan changes ({str(error).splitlines()[0][:80]}); "
                "prune less, or write the width as a parameter"
            ) from error
    scale = float(wanted.abs().max()) or 1.0
    off = float((found - wanted).abs().max()) / scale
    if not off <= _SAME:
        raise InputError(
            f"expected the module to do what the file does, found a relative difference of {off:.2g}: a BatchNorm "
            "stands alone, or the file is not from this module; fine-tune with rankfold tune instead"
        )
