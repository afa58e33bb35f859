from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rankfold.errors import CheckFailed, InputError
from rankfold.export import shrink as shrinking
from rankfold.export.graphs import array, set_array
from rankfold.export.parity import difference, run
from rankfold.export.shrink import prepare_dense, shrink
from rankfold.files import sha256_of
from rankfold.records import Plan
from rankfold.runtime.costs import count
from rankfold.runtime.inputs import make_inputs

SAME = 1e-5  # float32 sums of a few hundred terms in another order


@pytest.fixture
def dense(tmp_path, chain_case) -> Path:
    path = tmp_path / "dense.onnx"
    onnx.save(chain_case.model, path)
    return path


def _outputs(path: Path, batch: int = 2) -> list[np.ndarray]:
    model = onnx.load(path)
    return run(model.SerializeToString(), make_inputs(model, batch, np.random.default_rng(0)))


def _scale(value: ir.Value, factor: float) -> None:
    numbers = array(value)
    assert numbers is not None
    set_array(value, numbers * np.float32(factor))


def test_every_zoo_model_shrinks(tmp_path, case):
    onnx.save(case.model, tmp_path / "dense.onnx")
    plan, parity = shrink(tmp_path / "dense.onnx", tmp_path / "compact.onnx", form="spatial", energy=0.5)
    assert [check.batch for check in parity.checks] == [1, 8] * 4
    assert all(check.passed for check in parity.checks)
    model = onnx.load(tmp_path / "compact.onnx")
    counted = count(model)
    assert counted.macs == sum(decision.macs or 0 for decision in plan.layers.values())
    assert counted.parameters <= count(case.model).parameters
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
    assert model.ir_version == 8


def test_exact_shrinking_computes_the_same(tmp_path, dense):
    plan, _ = shrink(dense, tmp_path / "compact.onnx", keep=["a", "b", "fc"])
    relative, _ = difference(_outputs(tmp_path / "compact.onnx"), _outputs(dense))
    assert relative < SAME
    assert (tmp_path / "compact.onnx").stat().st_size < dense.stat().st_size
    assert plan.layers["a"].macs_dense == 8 * 27 * 120
    assert plan.layers["a"].macs == 6 * 27 * 120


def test_the_file_says_where_it_comes_from(tmp_path, dense):
    plan, _ = shrink(dense, tmp_path / "compact.onnx", energy=0.5)
    model = onnx.load(tmp_path / "compact.onnx")
    properties = {one.key: one.value for one in model.metadata_props}
    assert sorted(properties) == ["rankfold.plan", "rankfold.source_sha256", "rankfold.version"]
    assert Plan.model_validate(json.loads(properties["rankfold.plan"])) == plan
    assert properties["rankfold.source_sha256"] == plan.source_sha256 == sha256_of(dense)


def test_shrinking_is_deterministic(tmp_path, dense):
    for name in ("one", "two"):
        shrink(dense, tmp_path / f"{name}.onnx", energy=0.5)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_prepare_dense_folds_batchnorm_and_nothing_else(tmp_path, dense):
    before = _outputs(dense)
    parity = prepare_dense(dense, tmp_path / "prepared.onnx")
    assert all(check.passed for check in parity.checks)
    model = onnx.load(tmp_path / "prepared.onnx")
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert [node.name for node in model.graph.node if node.op_type == "Conv"] == ["a", "b"]
    assert count(model).macs == count(onnx.load(dense)).macs
    assert difference(_outputs(tmp_path / "prepared.onnx"), before)[0] < SAME
    prepare_dense(dense)
    assert dense.read_bytes() != b""
    assert difference(_outputs(dense), before)[0] < SAME


def test_a_pass_that_is_not_exact_is_caught_and_nothing_written(tmp_path, dense, monkeypatch):
    def corrupt(model, tile):
        _scale(model.graph.initializers["b.weight"], 1.01)
        return {}

    monkeypatch.setattr(shrinking, "fold_channels", corrupt)
    with pytest.raises(CheckFailed, match="fold dead channels, batch 1: expected a relative error of at most"):
        shrink(dense, tmp_path / "compact.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["dense.onnx"]


def test_a_wrong_simplification_is_not_used(tmp_path, dense, monkeypatch):
    real = shrinking.simplified

    def wrong(model):
        result = real(model)
        _scale(result.graph.initializers["fc.bias"], 2.0)
        return result

    monkeypatch.setattr(shrinking, "simplified", wrong)
    _, parity = shrink(dense, tmp_path / "compact.onnx", keep=["a", "b", "fc"])
    assert {check.what for check in parity.checks if not check.passed} == {"simplify (failed, not used)"}
    assert difference(_outputs(tmp_path / "compact.onnx"), _outputs(dense))[0] < SAME


def test_a_simplifier_that_raises_is_not_used(tmp_path, dense, monkeypatch):
    def broken(model):
        raise RuntimeError("no such node")

    monkeypatch.setattr(shrinking, "simplified", broken)
    parity = prepare_dense(dense, tmp_path / "prepared.onnx")
    assert [check.what for check in parity.checks if not check.passed] == ["simplify (failed, not used)"] * 2
    assert difference(_outputs(tmp_path / "prepared.onnx"), _outputs(dense))[0] < SAME


def test_a_prepared_model_shrinks_the_same_way(tmp_path, case):
    onnx.save(case.model, tmp_path / "dense.onnx")
    prepare_dense(tmp_path / "dense.onnx", tmp_path / "prepared.onnx")
    first, second = (
        shrink(tmp_path / f"{name}.onnx", tmp_path / f"{name}-compact.onnx", energy=0.5)[0]
        for name in ("dense", "prepared")
    )
    assert first.groups == second.groups
    assert {name: one.ranks for name, one in first.layers.items()} == {
        name: one.ranks for name, one in second.layers.items()
    }


def _missing(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _text(path: Path) -> None:
    path.write_text("this is no model\n" * 50)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _nan(path: Path) -> None:
    _rewrite(path, "b.weight", lambda numbers: np.where(numbers > 0, np.nan, numbers))


def _infinite(path: Path) -> None:
    _rewrite(path, "bn_a.bias", lambda numbers: numbers + np.inf)


def _wrong_shape(path: Path) -> None:
    _rewrite(path, "b.weight", lambda numbers: numbers[:, :5])


def _rewrite(path: Path, name: str, change) -> None:
    model = onnx.load(path)
    tensor = next(one for one in model.graph.initializer if one.name == name)
    numbers = change(onnx.numpy_helper.to_array(tensor)).astype(np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, name))
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_missing, r"cannot read .*dense.onnx: No such file or directory; check the path"),
        (_folder, r"cannot read .*dense.onnx: Is a directory; check the path"),
        (_empty, r"dense.onnx: expected an ONNX model, found an empty file; export or copy it again"),
        (_truncated, r"dense.onnx: expected an ONNX model, found .*; export or copy it again"),
        (_text, r"dense.onnx: expected an ONNX model, found .*; export or copy it again"),
        (_nan, r"dense.onnx: expected finite weights, found NaN or infinity in 'b.weight'"),
        (_infinite, r"dense.onnx: expected finite weights, found NaN or infinity in 'bn_a.bias'"),
        (_wrong_shape, r"dense.onnx: the model cannot be evaluated in float64: .*; check it"),
    ],
)
@pytest.mark.parametrize("command", [shrink, lambda dense, _: prepare_dense(dense)], ids=["shrink", "prepare"])
def test_bad_models_get_one_line_and_leave_no_file(tmp_path, dense, damage, message, command):
    damage(dense)
    before = dense.read_bytes() if dense.is_file() else None
    with pytest.raises(InputError, match=message) as raised:
        command(dense, tmp_path / "compact.onnx")
    assert "\n" not in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"dense.onnx"}
    assert before is None or dense.read_bytes() == before


def test_an_unwritable_output_gets_one_line(tmp_path, dense):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*compact.onnx: .*; choose another output"):
        shrink(dense, tmp_path / "file" / "compact.onnx")
