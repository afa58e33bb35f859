"""ONNX operators as differentiable torch functions: one table, a function an operator.

Semantics are those of the ONNX operator specification at opset 13 to 21, for float32 and int64 tensors. What torch
has no equal for (asymmetric `auto_pad`, `ceil_mode` of averages, cubic resizing) is refused with its reason.

call.py         a node as its function sees it
elementwise.py  layers.py  shapes.py
"""

from __future__ import annotations

from .call import Call, Table
from .elementwise import ELEMENTWISE
from .layers import LAYERS
from .shapes import SHAPES

__all__ = ["OPERATORS", "Call"]

OPERATORS = Table(ELEMENTWISE | LAYERS | SHAPES)
