from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from rankfold.errors import CheckFailed

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from rankfold.export import from_torch  # noqa: E402
from rankfold.export.from_torch import NEW, OLD, to_onnx  # noqa: E402
from rankfold.export.shrink import shrink  # noqa: E402

CLOSE = 1e-5  # float32 sums of a few hundred terms in another order


class Small(nn.Module):
    """A separable pair, a residual block, pooling: every idea of the built-in networks once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, (5, 1), padding=(2, 0), bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.pair = nn.Sequential(nn.Conv2d(8, 8, (1, 5), padding=(0, 2)), nn.BatchNorm2d(8), nn.ReLU())
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)
        self.pair[1].eval()

    def forward(self, x):
        x = nn.functional.max_pool2d(self.pair(torch.relu(self.bn1(self.conv1(x)))), 2)
        x = torch.relu(x + self.bn2(self.conv2(x)))
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture
def module() -> Small:
    torch.manual_seed(0)
    small = Small()
    for part in small.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean, part.running_var = torch.randn(8), torch.rand(8) + 0.5
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.normal_(part.bias)
            part.weight.data[[1, 4]] = part.bias.data[[1, 4]] = 0
    return small


EXAMPLE = (2, 1, 16, 16)


def _agrees(module, path) -> None:
    modes = {part: part.training for part in module.modules()}
    module.eval()
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 1, 16, 16]
    for batch in (1, 5):
        x = torch.randn(batch, *EXAMPLE[1:], generator=torch.Generator().manual_seed(batch))
        found = np.asarray(session.run(["output"], {"input": x.numpy()})[0])
        with torch.no_grad():
            np.testing.assert_allclose(found, module(x).numpy(), atol=CLOSE)
    for part, mode in modes.items():
        part.training = mode


def test_export_keeps_names_batchnorm_and_the_modules_mode(tmp_path, module):
    modes = [part.training for part in module.modules()]
    assert len(set(modes)) == 2
    exporter, checks = to_onnx(module, torch.zeros(EXAMPLE)[:1], tmp_path / "dense.onnx")
    assert exporter == NEW
    assert [(check.batch, check.passed) for check in checks] == [(1, True), (8, True)]
    assert [part.training for part in module.modules()] == modes
    _agrees(module, tmp_path / "dense.onnx")
    model = onnx.load(tmp_path / "dense.onnx")
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("BatchNormalization") == 3
    assert [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")] == [
        "conv1",
        "pair.0",
        "conv2",
        "fc",
    ]
    assert (model.ir_version, model.opset_import[0].version) == (8, from_torch.OPSET)
    assert str(tmp_path.parent) not in str(model)
    assert "/" not in "".join(prop.value for node in model.graph.node for prop in node.metadata_props)
    plan, _ = shrink(tmp_path / "dense.onnx", tmp_path / "compact.onnx", keep=["conv1", "pair.0", "conv2", "fc"])
    assert [len(plan.groups[name].kept) for name in ("conv1", "pair.0")] == [6, 6]
    assert plan.groups["pair.0"].members == ["pair.0", "conv2"]
    _agrees(module, tmp_path / "compact.onnx")


def _raises(module, example):
    raise RuntimeError("no such operator")


def _differs(module, example):
    wrong = Small().eval()
    return from_torch._torchscript(wrong, example)


@pytest.mark.parametrize("broken", [_raises, _differs])
def test_the_older_exporter_takes_over(tmp_path, module, monkeypatch, broken):
    monkeypatch.setattr(from_torch, "_dynamo", broken)
    exporter, checks = to_onnx(module, torch.zeros(EXAMPLE), tmp_path / "dense.onnx")
    assert exporter == OLD
    assert all(check.passed for check in checks)
    _agrees(module, tmp_path / "dense.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "dense.onnx").graph.node]
    assert kinds.count("BatchNormalization") == 3


def test_when_both_exporters_fail_nothing_is_written(tmp_path, module, monkeypatch):
    monkeypatch.setattr(from_torch, "_dynamo", _raises)
    monkeypatch.setattr(from_torch, "_torchscript", _differs_forever)
    with pytest.raises(CheckFailed, match=r"agrees with torch, found .*no such operator; .*relative error"):
        to_onnx(module, torch.zeros(EXAMPLE), tmp_path / "dense.onnx")
    assert list(tmp_path.iterdir()) == []


_torchscript = from_torch._torchscript


def _differs_forever(module, example):
    return _torchscript(Small().eval(), example)
