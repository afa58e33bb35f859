"""The passes that clean a graph up: constants folded, denormals flushed, versions that old runtimes read."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rankfold.errors import InputError
from rankfold.export.fold import tidy
from rankfold.export.footprint import total_bytes
from rankfold.export.graphs import IR_VERSION, serialize, with_weights
from rankfold.export.opsets import require_known_opset, retargeted, target
from rankfold.export.passes.flush_denormals import count_denormals, flush_denormals

from .written import SHAPES, TOKENS, parsed

TINY = float(np.finfo(np.float32).tiny)


def _text(body: str, inputs: str = "float[batch, 4] x", constants: str = "") -> ir.Model:
    text = f'<ir_version: 8, opset_import: ["" : 18]> net ({inputs}) => (y) {constants} {{ {body} }}'
    model = ir.from_proto(onnx.parser.parse_model(text))
    tidy(model)
    return model


def _operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


# --- constants ----------------------------------------------------------------------------------------------


def test_what_depends_on_no_input_is_computed():
    model = _text(
        "a = Constant<value = float[2] {1.0, 2.0}>() b = Add(a, a) c = Mul(b, a) "
        "d = Concat<axis = 0>(c, b) y = Add(x, d)"
    )
    assert _operators(model) == ["Add"]
    constant = model.graph.node(0).inputs[1]
    assert constant is not None
    assert constant.const_value is not None
    assert constant.const_value.numpy().tolist() == [2.0, 8.0, 2.0, 4.0]


def test_a_scalar_stays_one():
    model = _text("a = Constant<value = float {1.5}>() b = Add(a, a) y = Mul(x, b)")
    (constant,) = ir.to_proto(model).graph.initializer
    assert list(constant.dims) == []
    (changed,) = with_weights(ir.to_proto(model), {constant.name: np.array(2.0, np.float32)}).graph.initializer
    assert (list(changed.dims), onnx.numpy_helper.to_array(changed)) == ([], 2.0)


def test_the_shape_of_what_is_known_is_a_constant_and_a_symbol_stays_one():
    body = "s = Shape(x) one = Constant<value = int64[1] {-1}>() t = Concat<axis = 0>(s, one) y = Reshape(x, t)"
    assert _operators(_text(body, "float[3, 4] x")) == ["Reshape"]
    assert _operators(_text(body)) == ["Shape", "Concat", "Reshape"]
    cut = _text("s = Shape<start = 1>(x) y = Reshape(x, s)", "float[1, 4] x")
    assert _operators(cut) == ["Reshape"]
    shape = cut.graph.node(0).inputs[1]
    assert shape is not None
    assert shape.const_value is not None
    assert shape.const_value.numpy().tolist() == [4]


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("s = Constant<value = int64[2] {1000, 1000}>() z = ConstantOfShape(s) y = Add(x, z)", "ConstantOfShape"),
        ("r = RandomNormal<shape = [4]>() y = Add(x, r)", "RandomNormal"),
        (
            "a = Constant<value = int64[2] {1, 4}>() f = Cast<to = 1>(a) n = Constant<value = int64[2] {300, 300}>() "
            "t = Tile(f, n) y = Concat<axis = -1>(x, t)",
            "Tile",
        ),
        (
            "l = Constant<value = int64 {1000000}>() z = Constant<value = int64 {0}>() "
            "o = Constant<value = int64 {1}>() "
            "r = Range(z, l, o) y = Concat<axis = 0>(x, r)",
            "Range",
        ),
    ],
    ids=["filled", "random", "tiled", "range"],
)
def test_what_would_make_the_file_larger_or_is_random_is_not_computed(body, kept):
    assert kept in _operators(_text(body))


def test_folding_again_finds_nothing():
    model = ir.from_proto(parsed(SHAPES))
    tidy(model)
    once = serialize(model)
    tidy(model)
    assert serialize(model) == once


# --- denormals ----------------------------------------------------------------------------------------------


def _with(numbers: np.ndarray) -> tuple[ir.Model, ir.Value]:
    model = ir.from_proto(parsed(TOKENS))
    value = model.graph.initializers["bias"]
    value.const_value = ir.tensor(numbers, name="bias")
    return model, value


@pytest.mark.parametrize(
    ("numbers", "flushed"),
    [
        (np.array([1, -TINY, TINY / 2, -1e-45, 0, 1e-40], np.float32), [1, -TINY, 0, 0, 0, 0]),
        (np.array([1e-310, 1e-300], np.float64), [0, 1e-300]),
        (np.array([1e-7, 6e-5, 1], np.float16), np.array([1e-7, 6e-5, 1], np.float16).tolist()),
        (np.array([1, 1e-40], ir.DataType.BFLOAT16.numpy()), [1, 0]),
        (np.array([1, 2], np.int64), [1, 2]),
    ],
    ids=["float32", "float64", "float16", "bfloat16", "int64"],
)
def test_what_is_subnormal_where_it_is_computed_becomes_zero(numbers, flushed):
    model, value = _with(numbers)
    expected = int(np.count_nonzero(numbers.astype(np.float64) != np.array(flushed, np.float64)))
    assert count_denormals(value) == expected
    assert flush_denormals(model) == expected
    assert value.const_value is not None
    found = value.const_value.numpy()
    assert found.dtype == numbers.dtype
    assert found.astype(np.float64).tolist() == np.array(flushed, numbers.dtype).astype(np.float64).tolist()
    assert flush_denormals(model) == 0


# --- versions -----------------------------------------------------------------------------------------------


def test_versions_are_as_low_as_the_operators_allow():
    model = ir.from_proto(parsed(TOKENS))
    for before, after in ((3, 4), (8, 8), (10, IR_VERSION)):
        model.ir_version = before
        assert onnx.load_model_from_string(serialize(model)).ir_version == after


def test_a_newer_runtime_changes_nothing():
    model = ir.from_proto(parsed(TOKENS))
    assert retargeted(model, target("1.32.0")) is model
    assert model.opset_imports[""] == 17
    assert retargeted(model, target("2.1")) is model


def test_opsets_that_no_runtime_reads():
    model = ir.from_proto(parsed(TOKENS))
    model.opset_imports[""] = 6
    with pytest.raises(InputError, match="expected opset 7 or newer, found 6"):
        require_known_opset(model)


# --- memory -------------------------------------------------------------------------------------------------


def test_the_footprint_is_the_sum_of_the_values_between():
    model = parsed(SHAPES)
    small, large = (total_bytes(model, {"x": [batch, 4, 6, 5]}) for batch in (1, 3))
    image, twice = 4 * 6 * 5 * 4, 4 * 12 * 10 * 4
    assert large - small == 2 * (2 * image + 3 * twice)  # Conv and Mul; Resize, Tile and Pad


def test_a_value_that_no_machine_holds_is_refused():
    model = parsed(SHAPES.replace("4, 6, 5]", "4, height, width]").replace("4, 12, 10]", "4, h, w]"))
    with pytest.raises(InputError, match=r"value '\w+' of shape \[1, 4, 600000, 200000\] takes .* GB; check the"):
        total_bytes(model, {"x": [1, 4, 300_000, 100_000]})
