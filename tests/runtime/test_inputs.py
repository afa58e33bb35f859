"""Arrays for any model's inputs, and what users say about them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from rankfold.errors import InputError
from rankfold.runtime.inputs import (
    Given,
    given,
    has_open_axes,
    has_open_batch,
    index_limit,
    input_shapes,
    make_inputs,
    parse_shapes,
    read_arrays,
)

ROWS = 11
KINDS = ("FLOAT", "FLOAT16", "DOUBLE", "INT8", "UINT8", "INT16", "INT32", "INT64", "UINT64", "BOOL")


def _model(*inputs: tuple[str, str, list], nodes: str = "", tables: dict | None = None) -> onnx.ModelProto:
    values = [
        helper.make_tensor_value_info(name, TensorProto.DataType.Value(kind), shape) for name, kind, shape in inputs
    ]
    constants = [onnx.numpy_helper.from_array(numbers, name) for name, numbers in (tables or {}).items()]
    lines = [line.split() for line in nodes.splitlines() if line.strip()]
    made = [helper.make_node(kind, names.split(","), [output]) for kind, names, output in lines]
    return helper.make_model(helper.make_graph(made, "inputs", values, [], constants))


def _made(model: onnx.ModelProto, batch: int = 2, said: Given | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    return make_inputs(model, batch, np.random.default_rng(seed), said)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_number_is_made_and_fixed_by_the_seed(kind):
    model = _model(("x", kind, ["batch", 400]))
    made = _made(model)["x"]
    assert made.dtype == helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(kind))
    assert made.shape == (2, 400)
    assert np.array_equal(made, _made(model)["x"])
    assert not np.array_equal(made, _made(model, seed=1)["x"])
    assert np.ptp(made.astype(float)) > 0


def test_masks_are_zeros_and_ones_and_images_of_eight_bits_have_levels():
    assert set(np.unique(_made(_model(("mask", "INT64", [3, 50])))["mask"])) == {0, 1}
    assert _made(_model(("x", "UINT8", [3, 50])))["x"].max() > 1


@pytest.mark.parametrize(
    "nodes",
    [
        "Gather table,tokens y",
        "Cast tokens c\nGather table,c y",
        "Identity table t\nUnsqueeze tokens,axes u\nGather t,u y",
        "Gather wide,tokens a\nGather table,tokens y",
    ],
)
def test_tokens_stay_below_the_smallest_table(nodes):
    tables = {"table": np.zeros((ROWS, 4)), "wide": np.zeros((90, 4)), "axes": np.array([1])}
    model = _model(("tokens", "INT64", ["batch", 500]), nodes=nodes, tables=tables)
    assert index_limit(model, "tokens") == ROWS
    made = _made(model)["tokens"]
    assert (made.min(), made.max()) == (0, ROWS - 1)


def test_a_size_given_for_a_symbol_holds_for_every_input():
    model = _model(("tokens", "INT64", ["batch", "length"]), ("mask", "INT64", ["batch", "length"]))
    shapes = {"tokens": (1, 9)}
    assert input_shapes(model, 4, shapes) == {"tokens": [4, 9], "mask": [4, 9]}
    with pytest.raises(
        InputError, match=r"input 'tokens': axis 1 has no fixed size; give one, such as --shape tokens:"
    ):
        _made(model)


def test_what_is_open():
    assert has_open_batch(_model(("x", "FLOAT", ["batch", 3])))
    assert not has_open_batch(_model(("x", "FLOAT", [1, 3]), ("s", "FLOAT", [])))
    assert has_open_axes(_model(("x", "FLOAT", [1, "height"])))
    assert not has_open_axes(_model(("x", "FLOAT", ["batch", 3])))


def test_initialisers_listed_as_inputs_are_not_fed():
    model = _model(("x", "FLOAT", [1]), ("w", "FLOAT", [3]), tables={"w": np.zeros(3, np.float32)})
    assert list(_made(model)) == ["x"]


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ([], {}),
        (["input:1x3x224x224"], {"input": (1, 3, 224, 224)}),
        (["a:1X2", "serving:0:5"], {"a": (1, 2), "serving:0": (5,)}),
        (["scalar:"], {"scalar": ()}),
    ],
)
def test_shapes_are_parsed(texts, found):
    assert parse_shapes(texts) == found


@pytest.mark.parametrize(
    "text", ["", "input", ":1x2", "x:1x", "x:0x3", "x:-1x3", "x:1,3", "x:1x3.5", "x:９", "x:1x" + "9" * 30]
)
def test_shapes_that_are_none(text):
    with pytest.raises(InputError, match=r"--shape .*: expected NAME:SIZExSIZE"):
        parse_shapes([text])


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        ({"y": (1, 3)}, "--shape names no input 'y'; the model has 'x'"),
        ({"x": (1, 4)}, "--shape x: axis 1 is fixed at 3, found 4"),
        ({"x": (1, 3, 3)}, "--shape x: expected 2 sizes, found 3"),
    ],
)
def test_shapes_that_do_not_fit(shapes, match):
    with pytest.raises(InputError, match=match):
        _made(_model(("x", "FLOAT", ["batch", 3])), said=Given(shapes=shapes))


def test_inputs_that_nobody_can_make():
    with pytest.raises(InputError, match="input 'x': expected a tensor of numbers, found STRING"):
        _made(_model(("x", "STRING", [1])))
    sequence = _model(("x", "FLOAT", [1]))
    sequence.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(sequence.graph.input[0].type))
    with pytest.raises(InputError, match="input 'x': expected a tensor of numbers, found sequence"):
        _made(sequence)
    with pytest.raises(InputError, match=r"input 'x' of shape .* is too large to run; give a smaller --shape"):
        _made(_model(("x", "FLOAT", [1, 1 << 40])))
    with pytest.raises(InputError, match="input 'x': axis 1 has the size -5"):
        _made(_model(("x", "FLOAT", [1, -5])))


def test_the_users_arrays_come_in_the_models_types(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.ones((5, 3)), more=np.zeros(1))
    said = given(None, tmp_path / "x.npz")
    made = _made(_model(("x", "FLOAT", ["batch", 3])), said=said)
    assert list(made) == ["x"]
    assert (made["x"].dtype, made["x"].shape) == (np.float32, (5, 3))
    with pytest.raises(InputError, match=r"array 'x': expected the shape \['\?', 4\], found \[5, 3\]"):
        _made(_model(("x", "FLOAT", ["batch", 4])), said=said)
    with pytest.raises(InputError, match="array 'x': expected int64, found float64; convert it"):
        _made(_model(("x", "INT64", ["batch", 3])), said=said)
    with pytest.raises(InputError, match="the inputs have no array 'z'; found more, x"):
        _made(_model(("z", "FLOAT", [1])), said=said)


def test_files_that_hold_no_arrays(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none.npz: No such file"):
        read_arrays(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(InputError, match=r"text.npz: expected an npz file of plain arrays"):
        read_arrays(tmp_path / "text.npz")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    with pytest.raises(InputError, match=r"objects.npz: expected an npz file of plain arrays \(Object arrays"):
        read_arrays(tmp_path / "objects.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"one.npy: expected an npz file of plain arrays"):
        read_arrays(tmp_path / "one.npy")
