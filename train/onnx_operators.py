"""ONNX operators as differentiable torch functions: one table, a function an operator.

Semantics are those of the ONNX operator specification at opset 13 to 21, for float32 and int64 tensors. What torch
has no equal for (asymmetric `auto_pad`, `ceil_mode` of averages, cubic resizing) is refused with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError


@dataclass(frozen=True)
class Call:
    """A node as its function sees it: attributes by name, how many outputs are read, the graph's opset."""

    operator: str
    attributes: Mapping[str, Any]
    outputs: int
    opset: int

    def get(self, name: str, default: Any) -> Any:
        """An attribute, strings as text."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def refuse(self, why: str) -> InputError:
        """What to raise for a variant that is not covered."""
        return InputError(f"{self.operator} with {why} cannot be tuned; tune a graph without it")


Function = Callable[..., Any]
OPERATORS: dict[str, Function] = {}


def _operator(*names: str) -> Callable[[Function], Function]:
    def add(function: Function) -> Function:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return add


def _ints(tensor: Tensor | None) -> list[int] | None:
    return None if tensor is None else [int(number) for number in tensor.reshape(-1).tolist()]


def _axes(call: Call, tensor: Tensor | None, default: Sequence[int]) -> list[int]:
    """Axes as an input (newer opsets) or an attribute (older ones)."""
    found = _ints(tensor)
    return list(call.get("axes", default)) if found is None else found


# --- elementwise --------------------------------------------------------------------------------------------

_UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "HardSwish": F.hardswish,
    "Mish": F.mish,
    "Not": torch.logical_not,
    "Identity": lambda x: x,
}
_BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Pow": torch.pow,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "MatMul": torch.matmul,
}
OPERATORS.update({name: (lambda call, x, f=f: f(x)) for name, f in _UNARY.items()})
OPERATORS.update({name: (lambda call, x, y, f=f: f(x, y)) for name, f in _BINARY.items()})


@_operator("Div")
def _div(_call: Call, x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


@_operator("Min", "Max")
def _extreme(call: Call, *inputs: Tensor) -> Tensor:
    found = inputs[0]
    for other in inputs[1:]:
        found = torch.minimum(found, other) if call.operator == "Min" else torch.maximum(found, other)
    return found


@_operator("Sum")
def _sum(_call: Call, *inputs: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*inputs)).sum(0)


@_operator("Clip")
def _clip(_call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


@_operator("LeakyRelu")
def _leaky_relu(call: Call, x: Tensor) -> Tensor:
    return F.leaky_relu(x, call.get("alpha", 0.01))


@_operator("PRelu")
def _prelu(_call: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@_operator("Elu")
def _elu(call: Call, x: Tensor) -> Tensor:
    return F.elu(x, call.get("alpha", 1.0))


@_operator("HardSigmoid")
def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0, 1)


@_operator("Gelu")
def _gelu(call: Call, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=call.get("approximate", "none"))


@_operator("Where")
def _where(_call: Call, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition, x, y)


@_operator("Dropout")
def _dropout(call: Call, x: Tensor, *_: Tensor | None) -> Any:
    return x if call.outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))


_TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.UINT8: torch.uint8,
}


@_operator("Cast")
def _cast(call: Call, x: Tensor) -> Tensor:
    kind = _TYPES.get(call.get("to", 0))
    if kind is None:
        raise call.refuse("a type other than float, double, int32, int64, uint8 and bool")
    return x.to(kind)


# --- layers -------------------------------------------------------------------------------------------------


def _padding(call: Call, spatial: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Begins, then ends, an axis each."""
    auto = call.get("auto_pad", "NOTSET")
    dilations = call.get("dilations", [1] * len(kernel))
    if auto == "NOTSET":
        return list(call.get("pads", [0] * 2 * len(kernel)))
    if auto == "VALID":
        return [0] * 2 * len(kernel)
    begins, ends = [], []
    for size, taps, stride, dilation in zip(spatial, kernel, strides, dilations, strict=True):
        missing = max((math.ceil(size / stride) - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
        less, more = missing // 2, missing - missing // 2
        begins.append(less if auto == "SAME_UPPER" else more)
        ends.append(more if auto == "SAME_UPPER" else less)
    return begins + ends


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    half = len(pads) // 2
    if not any(pads):
        return x
    pairs = zip(reversed(pads[:half]), reversed(pads[half:]), strict=True)
    return F.pad(x, [size for pair in pairs for size in pair], value=value)


@_operator("Conv")
def _conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axes = weight.ndim - 2
    strides, dilations = call.get("strides", [1] * axes), call.get("dilations", [1] * axes)
    pads = _padding(call, x.shape[2:], weight.shape[2:], strides)
    if pads[:axes] != pads[axes:]:
        x, pads = _padded(x, pads), [0] * 2 * axes
    convolve = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    return convolve(x, weight, bias, strides, pads[:axes], dilations, call.get("group", 1))


@_operator("ConvTranspose")
def _conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axes = weight.ndim - 2
    if call.get("auto_pad", "NOTSET") != "NOTSET" or call.get("output_shape", None):
        raise call.refuse("auto_pad or output_shape")
    pads = call.get("pads", [0] * 2 * axes)
    if pads[:axes] != pads[axes:]:
        raise call.refuse("asymmetric padding")
    transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    strides, dilations = call.get("strides", [1] * axes), call.get("dilations", [1] * axes)
    extra = call.get("output_padding", [0] * axes)
    return transposed(x, weight, bias, strides, pads[:axes], extra, call.get("group", 1), dilations)


@_operator("Gemm")
def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    left = a.T if call.get("transA", 0) else a
    right = b.T if call.get("transB", 0) else b
    product = call.get("alpha", 1.0) * (left @ right)
    return product if c is None else product + call.get("beta", 1.0) * c


@_operator("MaxPool", "AveragePool")
def _pool(call: Call, x: Tensor) -> Tensor:
    kernel = call.get("kernel_shape", [])
    axes = len(kernel)
    strides = call.get("strides", [1] * axes)
    pads = _padding(call, x.shape[2:], kernel, strides)
    ceil = bool(call.get("ceil_mode", 0))
    if call.outputs > 1:
        raise call.refuse("indices as an output")
    if call.operator == "MaxPool":
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1]
        dilations = call.get("dilations", [1] * axes)
        return pool(_padded(x, pads, -math.inf), kernel, strides, 0, dilations, ceil)
    if ceil or any(one != 1 for one in call.get("dilations", [1] * axes)):
        raise call.refuse("ceil_mode or dilations")
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1]
    found = pool(_padded(x, pads), kernel, strides)
    if call.get("count_include_pad", 0) or not any(pads):
        return found
    seen = pool(_padded(torch.ones_like(x[:1, :1]), pads), kernel, strides)
    return found / seen


@_operator("GlobalAveragePool")
def _global_average(_call: Call, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@_operator("GlobalMaxPool")
def _global_max(_call: Call, x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


def _by_channel(numbers: Tensor, like: Tensor) -> Tensor:
    return numbers.reshape(1, -1, *[1] * (like.ndim - 2))


@_operator("BatchNormalization")
def _batch_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    factor = scale / torch.sqrt(variance + call.get("epsilon", 1e-5))
    return x * _by_channel(factor, x) + _by_channel(shift - mean * factor, x)


@_operator("InstanceNormalization")
def _instance_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=shift, eps=call.get("epsilon", 1e-5))


@_operator("GroupNormalization")
def _group_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    groups = call.get("num_groups", 1)
    if len(scale) != x.shape[1]:  # before opset 21 one number a group
        scale, shift = (one.repeat_interleave(x.shape[1] // groups) for one in (scale, shift))
    return F.group_norm(x, groups, scale, shift, call.get("epsilon", 1e-5))


@_operator("LayerNormalization")
def _layer_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    shape = x.shape[call.get("axis", -1) :]
    return F.layer_norm(x, shape, scale.expand(shape), None if shift is None else shift.expand(shape),
                        call.get("epsilon", 1e-5))  # fmt: skip


@_operator("LpNormalization")
def _lp_norm(call: Call, x: Tensor) -> Tensor:
    return F.normalize(x, p=call.get("p", 2), dim=call.get("axis", -1), eps=0.0)


@_operator("Softmax", "LogSoftmax")
def _softmax(call: Call, x: Tensor) -> Tensor:
    function = torch.softmax if call.operator == "Softmax" else torch.log_softmax
    if call.opset >= 13:
        return function(x, call.get("axis", -1))
    axis = call.get("axis", 1) % x.ndim  # before: over all axes from this one on
    return function(x.flatten(axis), -1).reshape(x.shape)


_REDUCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceL2": torch.linalg.vector_norm,
}


@_operator(*_REDUCTIONS)
def _reduce(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _axes(call, axes, ())
    if not chosen:
        if call.get("noop_with_empty_axes", 0):
            return x
        chosen = list(range(x.ndim))
    return _REDUCTIONS[call.operator](x, dim=tuple(chosen), keepdim=bool(call.get("keepdims", 1)))


# --- shapes -------------------------------------------------------------------------------------------------


@_operator("Shape")
def _shape(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[call.get("start", 0) : call.get("end", None)], dtype=torch.int64)


@_operator("Reshape")
def _reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    keeps_zero = call.get("allowzero", 0)
    sizes = [x.shape[axis] if size == 0 and not keeps_zero else size for axis, size in enumerate(_ints(shape) or [])]
    return x.reshape(sizes)


@_operator("Flatten")
def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    before = math.prod(x.shape[: axis if axis >= 0 else x.ndim + axis])
    return x.reshape(before, -1)


@_operator("Transpose")
def _transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(*call.get("perm", list(reversed(range(x.ndim)))))


@_operator("Squeeze")
def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _axes(call, axes, ())
    return x.squeeze(tuple(chosen)) if chosen else x.squeeze()


@_operator("Unsqueeze")
def _unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _axes(call, axes, ())
    rank = x.ndim + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@_operator("Concat")
def _concat(call: Call, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, call.get("axis", 0))


@_operator("Split")
def _split(call: Call, x: Tensor, sizes: Tensor | None = None) -> Any:
    axis = call.get("axis", 0)
    parts = _ints(sizes) or list(call.get("split", []))
    if not parts:
        each = math.ceil(x.shape[axis] / call.outputs)
        parts = [min(each, x.shape[axis] - each * number) for number in range(call.outputs)]
    return torch.split(x, parts, axis)


@_operator("Slice")
def _slice(
    _call: Call, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    begins, stops = _ints(starts) or [], _ints(ends) or []
    along = _ints(axes) or list(range(len(begins)))
    strides = _ints(steps) or [1] * len(begins)
    for axis, begin, stop, step in zip(along, begins, stops, strides, strict=True):
        chosen = torch.arange(x.shape[axis], device=x.device)[slice(begin, stop, step)] if step > 0 else None
        if chosen is None:
            first, last, _ = slice(begin, None if stop < -x.shape[axis] else stop, step).indices(x.shape[axis])
            chosen = torch.arange(first, last, step, device=x.device)
        x = x.index_select(axis, chosen)
    return x


@_operator("Pad")
def _pad(call: Call, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    mode = call.get("mode", "constant")
    sizes, along = _ints(pads) or [], _ints(axes) or list(range(x.ndim))
    half = len(sizes) // 2
    begins, ends = [0] * x.ndim, [0] * x.ndim
    for axis, begin, end in zip(along, sizes[:half], sizes[half:], strict=True):
        begins[axis], ends[axis] = begin, end
    if mode == "constant":
        return _padded(x, [*begins, *ends], 0.0 if value is None else float(value))
    kinds = {"edge": "replicate", "reflect": "reflect"}
    if mode not in kinds or any(begins[:2]) or any(ends[:2]):
        raise call.refuse(f"mode {mode} here")
    pairs = zip(reversed(begins[2:]), reversed(ends[2:]), strict=True)
    return F.pad(x, [size for pair in pairs for size in pair], mode=kinds[mode])


@_operator("Gather")
def _gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0) % x.ndim
    size = x.shape[axis]
    flat = torch.where(indices < 0, indices + size, indices).reshape(-1).long().to(x.device)
    return x.index_select(axis, flat).reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


@_operator("Expand")
def _expand(_call: Call, x: Tensor, shape: Tensor) -> Tensor:
    return x * torch.ones(_ints(shape) or [], dtype=x.dtype, device=x.device)


@_operator("Tile")
def _tile(_call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(_ints(repeats) or [])


@_operator("Constant")
def _constant(call: Call) -> Tensor:
    value = call.attributes.get("value")
    if value is not None:
        return torch.from_numpy(np.array(numpy_helper.to_array(value)))
    name, value = next((name, value) for name, value in call.attributes.items() if name.startswith("value_"))
    return torch.tensor(value, dtype=torch.float32 if "float" in name else torch.int64)


@_operator("ConstantOfShape")
def _constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    value = call.attributes.get("value")
    numbers = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    return torch.from_numpy(np.full(_ints(shape) or [], numbers.reshape(-1)[0], numbers.dtype))


@_operator("Range")
def _range(_call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@_operator("DepthToSpace")
def _depth_to_space(call: Call, x: Tensor) -> Tensor:
    block = call.get("blocksize", 1)
    n, c, h, w = x.shape
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    parts = x.reshape(n, block, block, c // block**2, h, w)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(n, c // block**2, h * block, w * block)


@_operator("SpaceToDepth")
def _space_to_depth(call: Call, x: Tensor) -> Tensor:
    block = call.get("blocksize", 1)
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block**2, h // block, w // block)


@_operator("Resize")
def _resize(
    call: Call, x: Tensor, _region: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    mode, where = call.get("mode", "nearest"), call.get("coordinate_transformation_mode", "half_pixel")
    target = (_ints(sizes) or [])[2:]
    if not target and scales is not None:
        target = [int(size * scale) for size, scale in zip(x.shape[2:], scales.reshape(-1).tolist()[2:], strict=True)]
    whole = all(after % before == 0 for before, after in zip(x.shape[2:], target, strict=True))
    if mode == "nearest" and whole:
        return F.interpolate(x, size=target, mode="nearest")  # every rounding agrees on whole factors
    if mode == "linear" and x.ndim == 4 and where in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return F.interpolate(x, size=target, mode="bilinear", align_corners=where == "align_corners")
    raise call.refuse(f"mode {mode} and {where} at these sizes")
