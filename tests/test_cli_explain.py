"""explain on the command line: a ledger of two real files, a change made, and one line for what is wrong."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from rankfold.export.passes.factorize import factorize
from rankfold.records import Explanation, LayerDecision
from rankfold.runtime import latency

from .export.explain.test_matching import network
from .export.nets import Net


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A network, itself with ranks off every tile, another network, and one that no runtime knows; read only."""
    folder = tmp_path_factory.mktemp("models")
    onnx.save(ir.to_proto(network(16, 32, 32)), folder / "dense.onnx")
    small = network(16, 32, 32)
    factorize(small, {name: LayerDecision(form="spatial", ranks=[17], reason="") for name in ("b", "c")})
    onnx.save(ir.to_proto(small), folder / "small.onnx")
    onnx.save(ir.to_proto(network(16, 24, kernel=5)), folder / "other.onnx")
    net = Net(channels=3, spatial=(16, 16))
    custom = net.model(net.head(net.block("input", "a", 16)))
    next(node for node in custom.graph.node if node.op_type == "Relu").domain = "com.example"
    custom.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    onnx.save(custom, folder / "custom.onnx")
    return folder


def test_a_ledger_of_two_files_and_a_change_made(models, tmp_path, call, monkeypatch):
    monkeypatch.setattr(latency, "ROUNDS", latency.ROUNDS // 10)
    monkeypatch.chdir(models)
    path = tmp_path / "explanation.json"
    code, said, err = call(f"explain dense.onnx small.onnx --time 2s --tile 16 -o {path}")
    assert code == 0, err
    found = Explanation.read(path)
    assert found.gap is not None
    assert found.residual is not None
    total = sum(bar.costs.value for bar in found.bars) + found.residual.value
    assert total == pytest.approx(found.gap.value, abs=1e-9)
    assert {"ranks off the tile", "factors", "never a layer"} <= {bar.cause for bar in found.bars}
    assert "b: 17, not 32" in said
    assert said.splitlines()[-2:] == [found.verdict, str(path)]
    out = models / "better.onnx"
    command = f"rankfold explain dense.onnx small.onnx --tile 16 --make {shlex.quote('b 17 → 16')} -o better.onnx"
    assert all(command.split(" --make")[0] in one.command for one in found.improvements if one.name != "folded")
    code, said, err = call(command.removeprefix("rankfold "))
    assert code == 0, err
    assert said.startswith("b 17 → 16: a layer changed by ")
    shapes = {entry.name: list(entry.dims) for entry in onnx.load(out).graph.initializer}
    assert shapes["b_v.weight"][0] == 16
    assert out.with_suffix(".parity.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("dense.onnx missing.onnx", "cannot read missing.onnx: No such file"),
        ("dense.onnx other.onnx", "other.onnx is no version of dense.onnx: only"),
        ("dense.onnx custom.onnx", "custom.onnx: .*com.example"),
        ("dense.onnx small.onnx --time soon", "--time 'soon': expected a time from 1s to 24h"),
        ("dense.onnx small.onnx --make x", "--make writes a model; give -o better.onnx"),
        ("dense.onnx small.onnx --make x -o new.onnx", "small.onnx has no such change; there are: "),
        ("dense.onnx small.onnx -o small.onnx/place.json", "cannot write small.onnx/place.json"),
        ("dense.onnx small.onnx --tile wide", "--tile 'wide': expected auto or a whole number"),
    ],
)
def test_what_is_wrong_is_one_line_and_no_file(models, call, monkeypatch, arguments, says):
    monkeypatch.chdir(models)
    before = sorted(path.name for path in models.iterdir())
    code, out, err = call(f"explain {arguments}")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert re.search(says, err), err
    assert sorted(path.name for path in models.iterdir()) == before
