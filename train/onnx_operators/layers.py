"""Operators that add up: convolutions, products, poolings, normalisations, reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .call import Call, Table, axes_of, padded

LAYERS = Table()


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


@LAYERS.of("Conv")
def _conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axes = weight.ndim - 2
    strides, dilations = call.get("strides", [1] * axes), call.get("dilations", [1] * axes)
    pads = _padding(call, x.shape[2:], weight.shape[2:], strides)
    if pads[:axes] != pads[axes:]:
        x, pads = padded(x, pads), [0] * 2 * axes
    convolve = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    return convolve(x, weight, bias, strides, pads[:axes], dilations, call.get("group", 1))


@LAYERS.of("ConvTranspose")
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


@LAYERS.of("Gemm")
def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    left = a.T if call.get("transA", 0) else a
    right = b.T if call.get("transB", 0) else b
    product = call.get("alpha", 1.0) * (left @ right)
    return product if c is None else product + call.get("beta", 1.0) * c


@LAYERS.of("MaxPool", "AveragePool")
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
        return pool(padded(x, pads, -math.inf), kernel, strides, 0, dilations, ceil)
    if ceil or any(one != 1 for one in call.get("dilations", [1] * axes)):
        raise call.refuse("ceil_mode or dilations")
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1]
    found = pool(padded(x, pads), kernel, strides)
    if call.get("count_include_pad", 0) or not any(pads):
        return found
    seen = pool(padded(torch.ones_like(x[:1, :1]), pads), kernel, strides)
    return found / seen


@LAYERS.of("GlobalAveragePool")
def _global_average(_call: Call, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@LAYERS.of("GlobalMaxPool")
def _global_max(_call: Call, x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


def _by_channel(numbers: Tensor, like: Tensor) -> Tensor:
    return numbers.reshape(1, -1, *[1] * (like.ndim - 2))


@LAYERS.of("BatchNormalization")
def _batch_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    factor = scale / torch.sqrt(variance + call.get("epsilon", 1e-5))
    return x * _by_channel(factor, x) + _by_channel(shift - mean * factor, x)


@LAYERS.of("InstanceNormalization")
def _instance_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=shift, eps=call.get("epsilon", 1e-5))


@LAYERS.of("GroupNormalization")
def _group_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    groups = call.get("num_groups", 1)
    if len(scale) != x.shape[1]:  # before opset 21 one number a group
        scale, shift = (one.repeat_interleave(x.shape[1] // groups) for one in (scale, shift))
    return F.group_norm(x, groups, scale, shift, call.get("epsilon", 1e-5))


@LAYERS.of("LayerNormalization")
def _layer_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    shape = x.shape[call.get("axis", -1) :]
    return F.layer_norm(x, shape, scale.expand(shape), None if shift is None else shift.expand(shape),
                        call.get("epsilon", 1e-5))  # fmt: skip


@LAYERS.of("LpNormalization")
def _lp_norm(call: Call, x: Tensor) -> Tensor:
    return F.normalize(x, p=call.get("p", 2), dim=call.get("axis", -1), eps=0.0)


@LAYERS.of("Softmax", "LogSoftmax")
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


@LAYERS.of(*_REDUCTIONS)
def _reduce(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = axes_of(call, axes, ())
    if not chosen:
        if call.get("noop_with_empty_axes", 0):
            return x
        chosen = list(range(x.ndim))
    return _REDUCTIONS[call.operator](x, dim=tuple(chosen), keepdim=bool(call.get("keepdims", 1)))
