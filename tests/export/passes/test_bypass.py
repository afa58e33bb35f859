"""Detours are found as long as they are, judged by what they do to counted numbers, and taken out."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rankfold.export.fold import tidy
from rankfold.export.graphs import refresh_shapes
from rankfold.export.layers import name_layers
from rankfold.export.parity import run
from rankfold.export.passes.bypass import bypass, detours
from rankfold.runtime.inputs import make_inputs

X = "float[batch, 8, 4, 4] x"
CONSTANTS = """
int64[4] whole = {0, 8, 4, 4}, int64[4] open = {-1, 8, 4, 4}, int64[3] rows = {0, 8, 16}, int64[4] tall = {0, 8, 16, 1},
int64[4] halves = {0, 2, 4, 16}, int64[8] order = {0, 4, 1, 5, 2, 6, 3, 7}, int64[8] same = {0, 1, 2, 3, 4, 5, 6, 7},
int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] four = {4}, int64[1] end = {100},
int64[8] edge = {0, 0, 1, 0, 0, 0, 0, 0}, float number = {1.0}, float scale = {1.5}, float[1] shift = {0.5},
float[1, 1, 1, 1] deep = {2.0}, float[4] each = {1.0, 2.0, 3.0, 4.0},
int64[1] eight = {8}, int64[4] before = {0, 1, 0, 0}
"""


def _parsed(body: str, inputs: str = X, outputs: str = f"{X[:-1]}y") -> onnx.ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : 18]> net ({inputs}) => ({outputs}) <{CONSTANTS}> {{ {body} }}'
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    return model


def _opened(model: onnx.ModelProto, *, canonical: bool = True) -> ir.Model:
    graph = ir.from_proto(model)
    if canonical:
        tidy(graph)
    else:
        refresh_shapes(graph)
        name_layers(graph)
    return graph


def _operators(graph: ir.Model) -> list[str]:
    return [node.op_type for node in graph.graph]


BACK = "b = Transpose<perm = [0, 2, 3, 1]>(a) {} y = Transpose<perm = [0, 3, 1, 2]>({})"
EXACT = {
    "there and back": ("a = Relu(x)" + BACK.format("", "b"), 2, ["Relu"]),
    "with an activation on the way": ("a = Neg(x)" + BACK.format("c = Relu(b)", "c"), 2, ["Neg", "Relu"]),
    "with scalars on the way": (
        "a = Neg(x)" + BACK.format("c = Mul(b, scale) d = Add(shift, c)", "d"),
        2,
        ["Neg", "Mul", "Add"],
    ),
    "from the input to the output": (BACK.replace("(a)", "(x)").format("c = Clip(b, scale)", "c"), 2, ["Clip"]),
    "reshaped": ("a = Relu(x) b = Reshape(a, rows) c = Tanh(b) y = Reshape(c, whole)", 2, ["Relu", "Tanh"]),
    "pixels into channels": (
        "a = Relu(x) b = SpaceToDepth<blocksize = 2>(a) c = Sigmoid(b) y = DepthToSpace<blocksize = 2>(c)",
        2,
        ["Relu", "Sigmoid"],
    ),
    "an axis more": ("a = Relu(x) b = Unsqueeze(a, two) y = Squeeze(b, two)", 2, ["Relu"]),
    "cut and joined": (
        "a = Relu(x) b, c = Split<axis = 1, num_outputs = 2>(a) y = Concat<axis = 1>(b, c)",
        2,
        ["Relu"],
    ),
    "padded and cut": ("a = Relu(x) b = Pad(a, edge) c = Exp(b) y = Slice(c, one, end, two)", 2, ["Relu", "Exp"]),
    "all channels in order": ("a = Relu(x) y = Gather<axis = 1>(a, same)", 1, ["Relu"]),
    "wider numbers": ("a = Relu(x) b = Cast<to = 11>(a) c = Sigmoid(b) y = Cast<to = 1>(c)", 2, ["Relu", "Sigmoid"]),
    "four nodes": (
        "a = Relu(x) b = Reshape(a, rows) c = Transpose<perm = [0, 2, 1]>(b) d = Relu(c) "
        "e = Transpose<perm = [0, 2, 1]>(d) y = Reshape(e, whole)",
        4,
        ["Relu", "Relu"],
    ),
}


@pytest.mark.parametrize(("body", "count", "left"), EXACT.values(), ids=EXACT)
def test_what_comes_back_in_order_is_taken_out_exactly(assert_exact, body, count, left):
    model = _parsed(body)
    graph = _opened(model)
    (detour,) = detours(graph)
    assert (len(detour.nodes), detour.target, detour.exact) == (count, "y", True)
    assert [name for name in detour.nodes if name in {node.name for node in graph.graph}] == list(detour.nodes)
    bypass(graph, detour)
    assert _operators(graph) == left
    assert [value.name for value in (*graph.graph.inputs, *graph.graph.outputs)] == ["x", "y"]
    assert_exact(model, graph)
    assert detours(graph) == []


OTHERS = {
    "shuffled by a list": "a = Relu(x) y = Gather<axis = 1>(a, order)",
    "shuffled": "a = Relu(x) b = Reshape(a, halves) c = Transpose<perm = [0, 2, 1, 3]>(b) y = Reshape(c, whole)",
    "halves the other way": "a = Relu(x) b, c = Split<axis = 1, num_outputs = 2>(a) y = Concat<axis = 1>(c, b)",
    "rows and columns": "a = Relu(x) y = Transpose<perm = [0, 1, 3, 2]>(a)",
    "blocks in another order": "a = Relu(x) b = SpaceToDepth<blocksize = 2>(a) "
    'y = DepthToSpace<blocksize = 2, mode = "CRD">(b)',
    "a pixel further": "a = Relu(x) b = Pad(a, edge) y = Slice(b, zero, four, two)",
    "the first row zero": "a = Relu(x) b = Slice(a, one, end, two) y = Pad(b, edge)",
    "the first row one": "a = Relu(x) b = Slice(a, one, end, two) y = Pad(b, edge, number)",
    "shorter numbers": "a = Sigmoid(x) b = Cast<to = 10>(a) y = Cast<to = 1>(b)",
    "pictures with each other": "a = Relu(x) b = Transpose<perm = [1, 0, 2, 3]>(a) y = Reshape(b, open)",
}


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_what_ends_in_another_order_is_a_detour_but_not_exact(body):
    model = _parsed(body)
    graph = _opened(model, canonical=False)
    (detour,) = detours(graph)
    assert not detour.exact
    bypass(graph, detour)
    assert len(_operators(graph)) == 1
    inputs = make_inputs(model, 2, np.random.default_rng(0))
    before, after = (run(one.SerializeToString(), inputs)[0] for one in (model, ir.to_proto(graph)))
    assert before.shape == after.shape
    assert not np.array_equal(before, after)


def test_a_shuffle_is_one_node_of_a_canonical_graph():
    graph = _opened(_parsed(OTHERS["shuffled"]))
    (detour,) = detours(graph)
    assert (len(detour.nodes), detour.exact, _operators(graph)) == (1, False, ["Relu", "Gather"])


NONE = {
    "another shape": "a = Relu(x) b = Reshape(a, tall) y = Reshape(b, rows)",
    "a branch": "a = Relu(x)" + BACK.format("c = Relu(b) z = ReduceSum(b)", "c"),
    "an output on the way": "a = Relu(x)" + BACK.format("z = Identity(b)", "z"),
    "something else on the way": "a = Relu(x)" + BACK.format("c = Softmax<axis = 1>(b)", "c"),
    "a number for each": "a = Relu(x) b = Unsqueeze(a, two) c = Mul(b, each) y = Squeeze(c, two)",
    "a scalar with axes": "a = Relu(x)" + BACK.format("c = Mul(b, deep)", "c"),
    "a part more": "a = Relu(x) b, c = Split<axis = 1, num_outputs = 2>(a) y = Concat<axis = 1>(b, c, x)",
    "a part more that is cut off": "a = Relu(x) b, c = Split<axis = 1, num_outputs = 2>(a) "
    "d = Concat<axis = 1>(b, c, x) y = Slice(d, zero, eight, one)",
    "a part less": "a = Relu(x) b, c = Split<axis = 1, num_outputs = 2>(a) z = Relu(c) y = Concat<axis = 1>(b, a)",
    "a part twice": "a = Relu(x) b, c = Split<axis = 1, num_outputs = 2>(a) y = Concat<axis = 1>(b, b, c)",
    "from the input to the output": BACK.replace("(a)", "(x)").format("", "b"),
    "a scalar of a type between": "c = Cast<to = 10>(x) d = Cast<to = 10>(scale) e = Mul(c, d) y = Cast<to = 1>(e)",
}


@pytest.mark.parametrize("body", NONE.values(), ids=NONE)
def test_what_is_none(body):
    outputs = "float y, float z" if " z = " in body else "float y"
    outputs = outputs.replace("float ", "float[batch, a, b, c] ")
    if "rows" in body:
        outputs = "float[batch, a, b] y"
    if "ReduceSum" in body:
        outputs = "float[batch, a, b, c] y, float[d, e, f, g] z"
    assert detours(_opened(_parsed(body, outputs=outputs))) == []


@pytest.mark.parametrize("number", [0.0, 1.0, 2.0])
def test_one_number_in_the_place_of_another_is_seen(number):
    body = f"n = Constant<value = float {{{number}}}>() a = Slice(x, one, end, one) y = Pad(a, before, n)"
    (detour,) = detours(_opened(_parsed(f"b = Relu(x) {body.replace('(x', '(b')}", "float[1, 3] x", "float[1, 3] y")))
    assert not detour.exact


def test_open_sizes_but_for_the_batch_are_left_alone():
    body = "a = Relu(x) y = Transpose<perm = [0, 1, 3, 2]>(a)"
    assert detours(_opened(_parsed(body, "float[batch, 8, h, w] x", "float[batch, 8, w, h] y"))) == []
    assert len(detours(_opened(_parsed(body)))) == 1


def test_exact_ones_go_first_and_long_ones_before_short_ones(assert_exact):
    """A shuffle in front of two nodes that undo each other is another detour, and two such pairs are one."""
    body = "a = Relu(x) s = Gather<axis = 1>(a, order)" + BACK.replace("(a)", "(s)").replace("y =", "t =").format(
        "", "b"
    )
    back = "u = Unsqueeze(t, two) v = Relu(u) y = Squeeze(v, two)"
    model = _parsed(f"{body} {back}")
    graph = _opened(model)
    assert [(len(one.nodes), one.exact) for one in detours(graph)] == [(1, False), (4, True)]
    (exact,) = [one for one in detours(graph) if one.exact]
    bypass(graph, exact)
    assert _operators(graph) == ["Relu", "Gather", "Relu"]
    assert_exact(model, graph)


def test_several_are_taken_out_one_after_the_other(assert_exact):
    """Where a value is read twice one detour ends and two others begin."""
    body = (
        "a = Relu(x) b = Unsqueeze(a, two) c = Squeeze(b, two) "
        "d = Transpose<perm = [0, 1, 3, 2]>(c) e = Relu(d) f = Transpose<perm = [0, 1, 3, 2]>(e) "
        "g = Reshape(c, rows) h = Neg(g) i = Reshape(h, whole) y = Sub(f, i)"
    )
    model = _parsed(body)
    graph = _opened(model)
    found = detours(graph)
    assert [(one.source, one.target) for one in found] == [("a", "c"), ("c", "f"), ("c", "i")]
    for detour in found:
        bypass(graph, detour)
    assert _operators(graph) == ["Relu", "Relu", "Neg", "Sub"]
    assert_exact(model, graph)
