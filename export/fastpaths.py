"""Which nodes miss the CPU provider's fast float32 kernels, and why: its rules, read from its source.

Blocked layout (NCHWc; x86, block 8 or 16): onnxruntime, core/optimizer/nchwc_transformer.cc, TransformConv and
TransformPool; pull request 7442; issue 14392. Plain layout (the aarch64 wheel): core/mlas/lib/convolve.cpp,
MlasConvPrepare; pull request 26688. tests/export/test_describe.py holds the blocked rules against the installed
runtime. Rules of another release may differ: what counts is what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .graphs import array, input_at, sizes
from .layers import has_padding

_INPUT_STEP = 4  # channels that the blocked kernels read at once (nchwc_transformer.cc, since 1.8)
_DEPTHWISE_TAPS = [3, 3]  # the only depthwise kernel written out for NEON (pull request 26688)


@dataclass(frozen=True)
class Miss:
    """A node that runs slower than its numbers suggest; `why` names the rule and what would mend it."""

    node: str
    operator: str
    why: str


def misses(graph: ir.Graph, layout: str, block: int) -> list[Miss]:
    """Nodes in the graph's order. `layout` is "nchwc" with its block, or "nchw" with the matrix kernels' step."""
    rule = _blocked if layout == "nchwc" else _plain
    found = ((node, rule(node, block)) for node in graph if not node.domain)
    return [Miss(node.name or "", node.op_type, why) for node, why in found if why]


def _blocked(node: ir.Node, block: int) -> str | None:
    if node.op_type == "Conv":
        return next(_conv_misses(node, block), None)
    if node.op_type in ("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"):
        channels = _channels(node)
        if channels is not None and channels % block:
            return f"{channels} channels are no multiple of the block of {block}: pooled in the plain layout"
    return None


def _conv_misses(node: ir.Node, block: int) -> Iterator[str]:
    weight, bias = array(input_at(node, 1)), input_at(node, 2)
    if weight is None or (bias is not None and array(bias) is None):
        yield "its weight is computed or fed, not stored: no blocked layout"
        return
    if weight.dtype != np.float32 or weight.ndim != 4:
        yield f"a {weight.ndim - 2}-D convolution in {weight.dtype}: blocked kernels take 2-D float32 only"
        return
    out, fan_in = weight.shape[:2]
    groups = node.attributes.get_int("group", 1)
    if groups > 1 and fan_in == 1 and out == groups:
        if out % block:
            yield f"{out} channels, depthwise, cost as much as {_padded(out, block)}: padded to the block of {block}"
    elif groups > 1:
        if fan_in % block or (out // groups) % block:
            yield f"groups of {fan_in} → {out // groups} channels, no multiples of the block of {block}: plain layout"
    elif fan_in >= block and fan_in % _INPUT_STEP:
        yield f"{fan_in} input channels are no multiple of {_INPUT_STEP}: plain layout, with reorders around it"
    elif fan_in < block and _has_producer(node):
        yield f"{fan_in} input channels are less than the block of {block}: its input is reordered first"
    elif out % block:
        yield f"{out} filters cost as much as {_padded(out, block)}: they are padded to the block of {block}"


def _padded(channels: int, block: int) -> int:
    return -(-channels // block) * block


def _plain(node: ir.Node, step: int) -> str | None:
    weight = array(input_at(node, 1)) if node.op_type == "Conv" else None
    if weight is None or weight.ndim < 3:
        return None
    groups, taps = node.attributes.get_int("group", 1), list(weight.shape[2:])
    strides = node.attributes.get_ints("strides", [1] * len(taps))
    dilations = node.attributes.get_ints("dilations", [1] * len(taps))
    moved = any(stride > 1 for stride in strides)
    if groups > 1 and weight.shape[1] == 1:
        if taps != _DEPTHWISE_TAPS or moved or any(size > 1 for size in dilations):
            return f"depthwise {_by(taps)} with stride {_by(strides)}: only 3×3 with stride 1 has its own kernel"
    elif groups > 1:
        return f"{groups} groups: copied and multiplied one by one"
    elif taps == [1] * len(taps) and (moved or has_padding(node)):
        return f"1×1 with stride {_by(strides)} or padding: copied first; put the stride into a larger kernel"
    elif weight.shape[0] % step:
        return f"{weight.shape[0]} filters are no multiple of {step}: the last rows take slower kernels"
    return None


def _channels(node: ir.Node) -> int | None:
    shape = sizes(node.inputs[0])
    return shape[1] if len(shape) > 1 else None


def _has_producer(node: ir.Node) -> bool:
    source = node.inputs[0]
    return source is not None and source.producer() is not None


def _by(numbers: Sequence[int]) -> str:
    return "×".join(map(str, numbers))
