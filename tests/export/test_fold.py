"""`fold`: any ONNX graph in, the same function out, all files or none."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from rankfold.errors import CheckFailed, InputError
from rankfold.export import fold as folding
from rankfold.export import graphs
from rankfold.export.fold import fold
from rankfold.export.graphs import array, set_array
from rankfold.export.parity import difference, run
from rankfold.files import sha256_of
from rankfold.records import Parity, Plan
from rankfold.runtime import onnxfile
from rankfold.runtime.inputs import Given, make_inputs

from .conftest import Case, chain
from .written import CUSTOM, LOOP, OLD, OPEN, RANDOM, SHAPES, TOKENS, parsed

SAME = 1e-5  # float32 sums of a few hundred terms in another order
HALF = 1e-2  # the same in float16, whose numbers have eleven bits
GIGABYTE = 1 << 30


@pytest.fixture
def saved(tmp_path):
    """Write a model's text, or a model, into a folder."""

    def write(model: str | onnx.ModelProto, name: str = "model.onnx") -> Path:
        onnx.save(parsed(model) if isinstance(model, str) else model, tmp_path / name)
        return tmp_path / name

    return write


def _graph(path: Path) -> onnx.GraphProto:
    return onnx.load(path).graph


def _assert_same(before: Path, after: Path, given: Given | None = None, most: float = SAME) -> None:
    inputs = make_inputs(onnx.load(before), 3, np.random.default_rng(5), given)
    truth = run(before, inputs)
    assert difference(run(after, inputs), truth)[0] < most
    assert max(np.ptp(one) for one in truth) > 0


def test_every_zoo_model_folds_and_folding_again_changes_nothing(tmp_path, saved, case: Case):
    source = saved(case.model)
    plan, parity = fold(source, tmp_path / "once.onnx")
    assert {name: len(group.kept) for name, group in plan.groups.items()} == case.kept
    assert {check.batch for check in parity.checks} == {1, 8}
    assert all(check.passed and check.bound is not None for check in parity.checks)
    _assert_same(source, tmp_path / "once.onnx")
    fold(tmp_path / "once.onnx", tmp_path / "twice.onnx")
    assert _graph(tmp_path / "twice.onnx") == _graph(tmp_path / "once.onnx")


def test_three_files_that_belong_together(tmp_path, saved, chain_case):
    source = saved(chain_case.model)
    plan, parity = fold(source, tmp_path / "new" / "small.onnx")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "small.onnx",
        "small.parity.json",
        "small.plan.json",
    ]
    assert Plan.read(tmp_path / "new" / "small.plan.json") == plan
    assert Parity.read(tmp_path / "new" / "small.parity.json") == parity
    assert plan.source_sha256 == sha256_of(source)
    found = {one.key: one.value for one in onnx.load(tmp_path / "new" / "small.onnx").metadata_props}
    assert Plan.model_validate_json(found["rankfold.plan"]) == plan


def test_a_file_folds_onto_itself(saved, chain_case):
    source = saved(chain_case.model)
    before = source.read_bytes()
    shutil.copy(source, source.with_name("copy.onnx"))
    fold(source, source)
    assert len(source.read_bytes()) < len(before)
    _assert_same(source.with_name("copy.onnx"), source)


def test_the_tile_is_kept(tmp_path, saved, chain_case):
    plan, _ = fold(saved(chain_case.model), tmp_path / "out.onnx", tile=4)
    assert len(plan.groups["a"].kept) == 8
    assert "the tile is 4" in plan.groups["a"].reason


def test_a_rewrite_that_is_not_exact_leaves_no_file(tmp_path, saved, chain_case, monkeypatch):
    def corrupt(model, tile):
        value = model.graph.initializers["b.weight"]
        numbers = array(value)
        assert numbers is not None
        set_array(value, numbers * np.float32(1.01))
        return {}

    source = saved(chain_case.model)
    monkeypatch.setattr(folding, "fold_channels", corrupt)
    with pytest.raises(CheckFailed, match=r"model.onnx: fold dead channels, batch 1: expected a relative error of"):
        fold(source, tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


# --- inputs as they are -------------------------------------------------------------------------------------


def test_an_open_height_needs_a_size_and_stays_open(tmp_path, saved):
    source = saved(OPEN)
    with pytest.raises(InputError, match=r"input 'image': axis 2 has no fixed size; give one, such as --shape image:"):
        fold(source, tmp_path / "out.onnx")
    fold(source, tmp_path / "out.onnx", shapes={"image": (1, 3, 10, 9)})
    dims = _graph(tmp_path / "out.onnx").input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3, "height", "width"]
    for height in (8, 13):
        _assert_same(source, tmp_path / "out.onnx", Given(shapes={"image": (2, 3, height, 7)}))


def test_tokens_and_their_mask(tmp_path, saved):
    source, said = saved(TOKENS), Given(shapes={"tokens": (1, 7)})
    _, parity = fold(source, tmp_path / "out.onnx", given=said)
    assert {check.batch for check in parity.checks} == {1, 8}
    _assert_same(source, tmp_path / "out.onnx", said)


def test_the_users_own_arrays(tmp_path, saved):
    source = saved(TOKENS)
    tokens = np.array([[1, 10, 3, 0, 2]])
    said = Given(arrays={"tokens": tokens, "mask": np.ones_like(tokens)})
    _, parity = fold(source, tmp_path / "out.onnx", given=said)
    assert [check.batch for check in parity.checks] == [1, 1]
    with pytest.raises(InputError, match="the inputs have no array 'mask'; found tokens"):
        fold(source, tmp_path / "out.onnx", given=Given(arrays={"tokens": tokens}))


# --- hygiene ------------------------------------------------------------------------------------------------


def test_constants_are_folded_and_denormals_flushed(tmp_path, saved):
    source = saved(SHAPES)
    fold(source, tmp_path / "out.onnx")
    graph = _graph(tmp_path / "out.onnx")
    assert {node.op_type for node in graph.node} == {"Conv", "Mul", "Resize", "Tile", "Pad", "Gather"}
    rows = next(one for one in map(onnx.numpy_helper.to_array, graph.initializer) if one.shape == (1, 4, 1, 1))
    assert rows.ravel().tolist() == [0.75, 0.25, -1.0, 0.0]
    _assert_same(source, tmp_path / "out.onnx")


def test_an_old_file_loses_its_listed_initialisers_identity_and_dropout(tmp_path, saved):
    model = onnx.parser.parse_model(OLD)
    rng = np.random.default_rng(0)
    for value in model.graph.input[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        numbers = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(numbers, value.name))
    source = saved(model)
    fold(source, tmp_path / "out.onnx")
    found = onnx.load(tmp_path / "out.onnx")
    assert [value.name for value in found.graph.input] == ["x"]
    assert [node.op_type for node in found.graph.node] == ["Conv", "Relu"]
    assert (found.ir_version, found.opset_import[0].version) == (4, 9)
    _assert_same(source, tmp_path / "out.onnx")


def test_float16_weights_stay_float16(tmp_path, saved):
    model = chain().model
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            numbers = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, tensor.name))
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    source = saved(model)
    plan, _ = fold(source, tmp_path / "out.onnx")
    assert len(plan.groups["a"].kept) == 6
    kinds = {tensor.data_type for tensor in _graph(tmp_path / "out.onnx").initializer}
    assert onnx.TensorProto.FLOAT not in kinds
    assert onnx.TensorProto.FLOAT16 in kinds
    _assert_same(source, tmp_path / "out.onnx", most=HALF)


@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16])
def test_weights_stored_in_two_bytes_are_not_widened(tmp_path, saved, kind):
    """Exporters store a half-precision weight and a Cast: folding the Cast would double the file."""
    model = parsed(CUSTOM.replace("com.microsoft.QuickGelu", "Relu").replace(', "com.microsoft" : 1', ""))
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "weight")
    large = np.random.default_rng(0).normal(size=(4, 40_000)).astype(np.float32)
    weight.CopyFrom(onnx.helper.make_tensor("half", kind, large.shape, large.ravel()))
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["half"], ["weight"], to=onnx.TensorProto.FLOAT))
    last = next(tensor for tensor in model.graph.initializer if tensor.name == "last")
    wide = np.random.default_rng(1).normal(size=(3, 40_000)).astype(np.float32)
    last.CopyFrom(onnx.numpy_helper.from_array(wide, "last"))
    source = saved(model)
    fold(source, tmp_path / "out.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in _graph(tmp_path / "out.onnx").initializer}
    assert kinds["half"] == kind
    assert (tmp_path / "out.onnx").stat().st_size < source.stat().st_size + 10_000
    _assert_same(source, tmp_path / "out.onnx")


@pytest.mark.parametrize(("release", "opset", "ir_version"), [("1.17", 20, 9), ("1.16.3", 19, 9), ("1.20", 21, 10)])
def test_an_older_runtime_can_read_it(tmp_path, saved, chain_case, release, opset, ir_version):
    model = onnx.version_converter.convert_version(chain_case.model, 21)
    model.ir_version = 10
    fold(saved(model), tmp_path / "out.onnx", target_ort=release)
    found = onnx.load(tmp_path / "out.onnx")
    assert [(one.domain, one.version) for one in found.opset_import] == [("", opset)]
    assert found.ir_version <= ir_version
    _assert_same(tmp_path / "model.onnx", tmp_path / "out.onnx")


def test_what_an_older_runtime_cannot_express_is_declined(tmp_path, saved):
    text = OLD.replace("ir_version: 3", "ir_version: 10").replace('"" : 9', '"" : 23')
    text = text.replace("Dropout<ratio = 0.5>(c)", "RMSNormalization(c, scale)").replace(
        "bias)", "bias, float[5] scale)"
    )
    model = onnx.parser.parse_model(text.replace("Conv(x, weight, bias, float[5] scale)", "Conv(x, weight, bias)"))
    rng = np.random.default_rng(0)
    for value in model.graph.input[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        numbers = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(numbers, value.name))
    with pytest.raises(
        InputError, match=r"opset 23 cannot be written as 20, the newest of ONNX Runtime 1.17: .*export it"
    ):
        fold(saved(model), tmp_path / "out.onnx", target_ort="1.17")


@pytest.mark.parametrize("release", ["1", "1.15", "0.9", "latest", "1.17; rm"])
def test_releases_that_are_none(tmp_path, saved, chain_case, release):
    with pytest.raises(InputError, match="--target-ort"):
        fold(saved(chain_case.model), tmp_path / "out.onnx", target_ort=release)


# --- what has no float64 reference --------------------------------------------------------------------------


def test_operators_of_the_runtime_alone_are_checked_against_the_runtime(tmp_path, saved):
    source = saved(CUSTOM)
    _, parity = fold(source, tmp_path / "out.onnx")
    assert all("against float32" in check.what for check in parity.checks)
    _assert_same(source, tmp_path / "out.onnx")


def test_loops_are_left_alone(tmp_path, saved):
    source = saved(LOOP)
    fold(source, tmp_path / "out.onnx")
    assert [node.op_type for node in _graph(tmp_path / "out.onnx").node] == ["Loop", "Gemm"]
    _assert_same(source, tmp_path / "out.onnx")


def test_random_outputs_cannot_be_checked(tmp_path, saved):
    with pytest.raises(InputError, match="the model yields other outputs at every run"):
        fold(saved(RANDOM), tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


# --- external data ------------------------------------------------------------------------------------------


def _with_data(folder: Path, model: onnx.ModelProto) -> Path:
    folder.mkdir()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # onnx.save empties what it stores outside
    outside = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 100}
    onnx.save(copy, folder / "model.onnx", **outside)
    return folder / "model.onnx"


def test_external_data_that_fits_is_embedded(tmp_path, saved, chain_case):
    source = _with_data(tmp_path / "in", chain_case.model)
    plan, _ = fold(source, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx.data").exists()
    assert len(plan.groups["a"].kept) == 6
    _assert_same(saved(chain_case.model), tmp_path / "out.onnx")


def test_weights_too_large_for_one_file_stay_in_two(tmp_path, saved, chain_case, monkeypatch):
    for module in (onnxfile, graphs):
        monkeypatch.setattr(module, "MAX_EMBEDDED_BYTES", 1000)
    source = _with_data(tmp_path / "in", chain_case.model)
    plan, parity = fold(source, tmp_path / "new" / "out.onnx")
    assert len(plan.groups["a"].kept) == 6
    assert sorted(path.name for path in (tmp_path / "new").iterdir())[:2] == ["out.onnx", "out.onnx.data"]
    assert all("against float32" in check.what for check in parity.checks)
    shutil.move(tmp_path / "new", tmp_path / "moved")
    _assert_same(saved(chain_case.model), tmp_path / "moved" / "out.onnx")
    fold(tmp_path / "moved" / "out.onnx", tmp_path / "moved" / "out.onnx")
    _assert_same(saved(chain_case.model), tmp_path / "moved" / "out.onnx")


def test_more_than_two_gigabytes(tmp_path, counts):
    """A product of 2.2 GB of weights whose output channels are half dead, folded to less than half."""
    if counts(False, True) is False:
        pytest.skip("2.2 GB of weights: only in `make soak`")
    width = 16_384 + 1024
    _write_wide(tmp_path, width)
    plan, _ = fold(tmp_path / "wide.onnx", tmp_path / "out.onnx")
    assert len(plan.groups["a"].kept) == width // 2
    assert (tmp_path / "wide.bin").stat().st_size > 2 * GIGABYTE
    assert (tmp_path / "out.onnx").stat().st_size < 1.3 * GIGABYTE
    _assert_same(tmp_path / "wide.onnx", tmp_path / "out.onnx")


def _write_wide(folder: Path, width: int) -> None:
    """x → Gemm a → Relu → Gemm b → y, each weight width × width; the second half of a's rows is zero."""
    rng = np.random.default_rng(0)
    block = rng.normal(0, width**-0.5, (64, width)).astype(np.float32)
    with open(folder / "wide.bin", "wb") as file:
        for start in range(0, width, 64):
            file.write((block if start < width // 2 else np.zeros_like(block)).tobytes())
        for _ in range(0, width, 64):
            file.write(np.roll(block, rng.integers(width)).tobytes())
    tensors = []
    for index, name in enumerate(("a.weight", "b.weight")):
        tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[width, width])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        size = width * width * 4
        for key, value in (("location", "wide.bin"), ("offset", index * size), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Gemm", ["x", "a.weight"], ["h"], transB=1),
            onnx.helper.make_node("Relu", ["h"], ["r"]),
            onnx.helper.make_node("Gemm", ["r", "b.weight"], ["y"], transB=1),
        ],
        "wide",
        [value("x", onnx.TensorProto.FLOAT, ["batch", width])],
        [value("y", onnx.TensorProto.FLOAT, ["batch", width])],
        tensors,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    (folder / "wide.onnx").write_bytes(model.SerializeToString())
