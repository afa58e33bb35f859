"""Small ONNX models as text (onnx.parser): what the builders of convolutional networks do not cover."""

from __future__ import annotations

import numpy as np
import onnx

TOKENS = """
<ir_version: 8, opset_import: ["" : 17]>
tokens (int64[batch, length] tokens, int64[batch, length] mask) => (float[batch, length, 6] y)
<float[11, 8] table, float[8, 6] weight, float[6] bias, float minus = {-10.0}>
{
  embedded = Gather(table, tokens)
  as_float = Cast<to = 1>(mask)
  one = Constant<value = float {1.0}>()
  off = Sub(one, as_float)
  penalty = Mul(off, minus)
  axis = Constant<value = int64[1] {2}>()
  column = Unsqueeze(penalty, axis)
  shifted = Add(embedded, column)
  h = Softmax<axis = -1>(shifted)
  projected = MatMul(h, weight)
  y = Add(projected, bias)
}
"""
SHAPES = """
<ir_version: 8, opset_import: ["" : 17]>
shapes (float[batch, 4, 6, 5] x) => (float[batch, 4, 12, 10] y)
<float[4, 4, 1, 1] weight, float[4] scale = {1.5, 0.5, -2.0, 1e-40}>
{
  c = Conv(x, weight)
  size = Constant<value = int64[1] {4}>()
  half = ConstantOfShape<value = float[1] {0.5}>(size)
  both = Mul(half, scale)
  to = Constant<value = int64[4] {1, 4, 1, 1}>()
  rows = Reshape(both, to)
  m = Mul(c, rows)
  twice = Constant<value = float[4] {1.0, 1.0, 2.0, 2.0}>()
  up = Resize<mode = "nearest">(m, , twice)
  repeats = Constant<value = int64[4] {1, 1, 1, 1}>()
  tiled = Tile(up, repeats)
  pads = Constant<value = int64[8] {0, 0, 0, 0, 0, 0, 0, 0}>()
  p = Pad(tiled, pads)
  from = Constant<value = int64 {0}>()
  until = Constant<value = int64 {4}>()
  step = Constant<value = int64 {1}>()
  order = Range(from, until, step)
  y = Gather<axis = 1>(p, order)
}
"""
LOOP = """
<ir_version: 8, opset_import: ["" : 17]>
loop (float[batch, 4] x) => (float[batch, 3] y)
<float[4, 4] weight, float[3, 4] last, int64 trips = {3}, bool go = {1}>
{
  r = Loop(trips, go, x) <body = body (int64 i, bool c, float[batch, 4] h) => (bool again, float[batch, 4] out)
  {
    again = Identity(c)
    product = MatMul(h, weight)
    out = Tanh(product)
  }>
  y = Gemm<transB = 1>(r, last)
}
"""


OPEN = """
<ir_version: 8, opset_import: ["" : 18]>
open (float[batch, 3, height, width] image, float[batch, 4] more) => (float[batch, 6] y)
<float[8, 3, 3, 3] first, float[4, 8, 1, 1] second, float[6, 4] last, int64[2] axes = {2, 3}>
{
  a = Conv<pads = [1, 1, 1, 1]>(image, first)
  b = Relu(a)
  c = Conv(b, second)
  pooled = ReduceMean<keepdims = 0>(c, axes)
  both = Add(pooled, more)
  y = Gemm<transB = 1>(both, last)
}
"""
RANDOM = """
<ir_version: 8, opset_import: ["" : 17]>
random (float[batch, 4] x) => (float[batch, 4] y)
{
  noise = RandomNormalLike(x)
  y = Add(x, noise)
}
"""
CUSTOM = """
<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
custom (float[batch, 4] x) => (float[batch, 3] y)
<float[4, 4] weight, float[3, 4] last>
{
  h = MatMul(x, weight)
  g = com.microsoft.QuickGelu(h)
  y = Gemm<transB = 1>(g, last)
}
"""
OLD = """
<ir_version: 3, opset_import: ["" : 9]>
old (float[batch, 3, 6, 5] x, float[4, 3, 1, 1] weight, float[4] bias) => (float[batch, 4, 6, 5] y)
{
  c = Conv(x, weight, bias)
  d = Dropout<ratio = 0.5>(c)
  e = Identity(d)
  y = Relu(e)
}
"""


def parsed(text: str) -> onnx.ModelProto:
    """A model from text, its weights filled with seeded numbers."""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for value in list(model.graph.value_info):
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        numbers = rng.normal(0, 0.5, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(numbers, value.name))
        model.graph.value_info.remove(value)
    onnx.checker.check_model(model)
    return model
