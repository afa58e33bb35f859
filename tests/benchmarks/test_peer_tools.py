"""What other tools make of a tiny network: smaller, whole, and the same in ONNX Runtime. One whose library is not there
is skipped by name.
"""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from rankfold.benchmarks.peers import aimet, nncf, onnxsim_pruning, pat, torch_pruning, tucker
from rankfold.benchmarks.peers.installed import library, missing
from rankfold.benchmarks.peers.registry import tools
from rankfold.benchmarks.peers.tools import FileTool, ModuleTool, Setting
from rankfold.errors import CheckFailed, InputError
from rankfold.export.from_torch import to_onnx
from rankfold.export.sessions import session
from rankfold.export.shrink import prepare_dense
from rankfold.runtime.costs import count
from rankfold.train.data import Dataset
from rankfold.train.data.dataset import Split

from ..conftest import SOAK

EXAMPLE = torch.zeros(2, 3, 8, 8)
FLOAT32 = 1e-4  # of the largest output: ONNX Runtime sums in another order
INT8 = 0.3  # eight bits, weights drawn by chance
FEW = {"steps": 12, "augment": "flip-shift"}  # more than PAT's warm-up
POINTS = {
    "magnitude": (torch_pruning.Magnitude(), {"pruning_ratio": 0.4, "round_to": None}),
    "magnitude, rounded": (torch_pruning.Magnitude(), {"pruning_ratio": 0.4, "round_to": 8, "global_pruning": True}),
    "group norm": (torch_pruning.GroupNorm(), {"pruning_ratio": 0.4, "round_to": 8, "reg": 1e-2, **FEW}),
    "nuclear norm": (pat.Pat(), {"way": {"prox_type": "ProxNuclearNorm", "reg_lambda": 30.0}, "round_to": None, **FEW}),
    "ranks cut": (
        pat.Pat(),
        {
            "way": {"prox_type": "MinRankConstraint", "min_sparsity": 0.6, "min_sparsity_schedule": True},
            "round_to": 8,
            **FEW,
        },
    ),
    "tucker": (tucker.Tucker(), {"parameters": 0.3, "round_to": None, "written": "convolutions"}),
    "tucker, energy": (tucker.Tucker(), {"energy": 0.5, "round_to": 8, "written": "convolutions"}),
    "tucker, its layers": (tucker.Tucker(), {"parameters": 0.3, "round_to": None, "written": "factorized"}),
    "onnxsim": (onnxsim_pruning.OnnxsimPruning(), {"sparsity": 0.4, "aware": True, "global_sparsity": True}),
}


class Tiny(nn.Module):
    """A stem, a residual block, a depthwise block, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = _conv(3, 16, 3), _conv(16, 32, 3)
        self.narrow, self.deep = _conv(32, 16, 3), _conv(16, 16, 3, groups=16)
        self.last, self.classifier = _conv(16, 24, 1), nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.narrow(torch.relu(self.wide(x)))
        x = torch.relu(self.last(torch.relu(self.deep(x))))
        return self.classifier(x.mean(dim=(2, 3)))


def _conv(before: int, out: int, kernel: int, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, out, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out))


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)

    def split(images: int) -> Split:
        return Split(generator.integers(0, 256, (images, 3, 8, 8), dtype=np.uint8), generator.integers(0, 10, images))

    return Dataset("noise", tuple("0123456789"), split(768), split(16), split(16), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Tiny().eval()


@pytest.fixture(scope="module")
def source(network, tmp_path_factory):
    """The dense network as a file: only where a tool is there."""
    path = tmp_path_factory.mktemp("peers") / "dense.onnx"
    to_onnx(network, EXAMPLE, path)
    return path


def _macs(path):
    found = count(onnx.load(path)).macs
    assert found is not None
    return found


def _outputs(path, images):
    return np.asarray(session(path, "a peer's file").run(None, {"input": images.numpy()})[0])


@pytest.mark.parametrize("point", POINTS if SOAK else list(POINTS)[:1])  # an export takes seconds
def test_a_module_is_smaller_and_runs_the_same_in_onnx_runtime(point, network, data, tmp_path, counts, request):
    tool, arguments = POINTS[point]
    if tool.missing is not None:
        pytest.skip(f"{tool.name}: {tool.missing}")
    source = request.getfixturevalue("source")
    setting, times = Setting(tool.name, point, arguments), counts(1, 2)
    made = [tool.apply(copy.deepcopy(network), EXAMPLE, setting, data) for _ in range(times)]
    path, images = tmp_path / "small.onnx", torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    to_onnx(made[0], EXAMPLE, path)
    prepare_dense(path)
    with torch.no_grad():
        wanted, *again = (one(images).numpy() for one in made)
    assert wanted.shape == (3, 10)
    for one in again:
        np.testing.assert_array_equal(one, wanted, err_msg="the same call made another network")
    np.testing.assert_allclose(_outputs(path, images), wanted, atol=FLOAT32 * abs(wanted).max())
    assert _macs(path) < _macs(source)
    assert not made[0].training


@pytest.mark.skipif(not SOAK, reason="takes half a minute: in soak")
def test_nncf_writes_int8_that_nearly_agrees(network, source, data, tmp_path):
    tool = nncf.Nncf()
    if tool.missing is not None:
        pytest.skip(f"{tool.name}: {tool.missing}")
    target = tmp_path / "int8.onnx"
    tool.apply_file(source, target, tool.settings("resnet20", quick=True)[0], data)
    images = torch.from_numpy(data.inputs(data.validation.images))
    wanted = network(images).detach().numpy()
    assert abs(_outputs(target, images) - wanted).max() < INT8 * abs(wanted).max()
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(target).graph.node)


def test_ranks_are_rounded_and_channels_on_the_multiple(network, data):
    if torch_pruning.Magnitude().missing is None:
        tool, arguments = POINTS["magnitude, rounded"]
        made = tool.apply(copy.deepcopy(network), EXAMPLE, Setting(tool.name, "", arguments), data)
        assert all(layer.out_channels % 8 == 0 for layer in made.modules() if isinstance(layer, nn.Conv2d))
    layer = network.wide[0]
    assert isinstance(layer, nn.Conv2d)
    assert tucker._ranks(layer, None, 0.5, 8) == (8, 8)
    assert tucker._ranks(layer, None, 1.0, None) == (32, 16)


def test_where_nothing_gets_smaller_the_setting_says_so(network, data):
    tool = tucker.Tucker()
    if tool.missing is not None:
        pytest.skip(f"{tool.name}: {tool.missing}")
    whole = Setting(tool.name, "all of the energy", {"energy": 1.0, "round_to": None, "written": "convolutions"})
    with pytest.raises(CheckFailed, match="all of the energy: no layer has fewer MACs as factors"):
        tool.apply(copy.deepcopy(network), EXAMPLE, whole, data)


def test_a_library_that_is_not_there_is_a_reason_in_one_line():
    with pytest.raises(InputError, match="expected the library no_such_library, found: No module named"):
        library("no_such_library")
    assert "make peers installs it" in (missing("no_such_library") or "")
    assert "torchvision" in (aimet.Aimet().missing or "")


def test_every_tool_has_a_grid_and_says_where_its_use_stands():
    names = [tool.name for tool in tools()]
    assert len(set(names)) == len(names)
    for tool in tools():
        assert isinstance(tool, ModuleTool | FileTool)
        assert tool.lines > 0
        assert "(" in tool.example
        for network in ("resnet20", "dec3", "mobilenetv2"):
            whole = tool.settings(network, quick=False)
            assert len(set(map(str, whole))) == len(whole)
            assert {setting.tool for setting in whole} <= {tool.name}
            assert bool(tool.settings(network, quick=True)) == bool(whole)
