"""Operators that act on each number by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F

from .call import Call, Table

ELEMENTWISE = Table()
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
ELEMENTWISE.update({name: (lambda call, x, f=f: f(x)) for name, f in _UNARY.items()})
ELEMENTWISE.update({name: (lambda call, x, y, f=f: f(x, y)) for name, f in _BINARY.items()})


@ELEMENTWISE.of("Div")
def _div(_call: Call, x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


@ELEMENTWISE.of("Min", "Max")
def _extreme(call: Call, *inputs: Tensor) -> Tensor:
    found = inputs[0]
    for other in inputs[1:]:
        found = torch.minimum(found, other) if call.operator == "Min" else torch.maximum(found, other)
    return found


@ELEMENTWISE.of("Sum")
def _sum(_call: Call, *inputs: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*inputs)).sum(0)


@ELEMENTWISE.of("Clip")
def _clip(_call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


@ELEMENTWISE.of("LeakyRelu")
def _leaky_relu(call: Call, x: Tensor) -> Tensor:
    return F.leaky_relu(x, call.get("alpha", 0.01))


@ELEMENTWISE.of("PRelu")
def _prelu(_call: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@ELEMENTWISE.of("Elu")
def _elu(call: Call, x: Tensor) -> Tensor:
    return F.elu(x, call.get("alpha", 1.0))


@ELEMENTWISE.of("HardSigmoid")
def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0, 1)


@ELEMENTWISE.of("Gelu")
def _gelu(call: Call, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=call.get("approximate", "none"))


@ELEMENTWISE.of("Where")
def _where(_call: Call, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition, x, y)


@ELEMENTWISE.of("Dropout")
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


@ELEMENTWISE.of("Cast")
def _cast(call: Call, x: Tensor) -> Tensor:
    kind = _TYPES.get(call.get("to", 0))
    if kind is None:
        raise call.refuse("a type other than float, double, int32, int64, uint8 and bool")
    return x.to(kind)
