"""Published CIFAR ResNets: groups zeroed in the residual stream of every stage and inside blocks are removed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import onnx
import onnx_ir as ir
import torch

from rankfold.export.from_torch import to_onnx
from rankfold.export.passes.canonicalize import canonicalize
from rankfold.export.passes.fold_batchnorm import fold_batchnorm
from rankfold.export.passes.fold_channels import fold_channels
from rankfold.train.models.resnet import resnet20, resnet56
from rankfold.train.models.weights import load_weights

INSIDE, STREAM = 0.4, 0.25  # shares of channels zeroed in each block, and in the stream


def _zero(norm: Any, channels: list[int]) -> None:
    """A group owns its BatchNorm: scale and shift are zero."""
    with torch.no_grad():
        norm.weight[channels] = 0
        norm.bias[channels] = 0


def _pick(generator: np.random.Generator, share: float, width: int) -> list[int]:
    return sorted(generator.choice(width, int(share * width), replace=False).tolist())


def _prune(model: Any, generator: np.random.Generator) -> dict[str, int]:
    """Zero groups; returns how many channels each layer must lose.

    A channel of the stream is written by every block of its stage, and by the one of the stage before that the
    shortcut carries to it: the stream of stage s + 1 has that of stage s in its middle, zeros on both sides.
    """
    dead, removed = _pick(generator, STREAM, 16), {}
    _zero(model.bn1, dead)
    removed["conv1"] = len(dead)
    for number, stage in enumerate((model.layer1, model.layer2, model.layer3), 1):
        width = stage[0].conv2.out_channels
        if number > 1:
            border = width // 4
            outer = [*range(border), *range(width - border, width)]
            chosen = generator.choice(outer, int(STREAM * border * 2), replace=False).tolist()
            dead = sorted([border + channel for channel in dead] + chosen)
        for index, block in enumerate(stage):
            inner = _pick(generator, INSIDE, width)
            _zero(block.bn1, inner)
            _zero(block.bn2, dead)
            removed[f"layer{number}.{index}.conv1"] = len(inner)
            removed[f"layer{number}.{index}.conv2"] = len(dead)
    return removed


@pytest.mark.parametrize("build", [resnet20, resnet56])
def test_all_zeroed_groups_are_removed_through_pad_and_slice(build, shared_data, tmp_path, assert_exact):
    (weights,) = (shared_data / "resnets-cifar10").glob(f"{build.__name__}-*.th")
    model = build().eval()
    load_weights(model, weights)
    removed = _prune(model, np.random.default_rng(0))
    to_onnx(model, torch.zeros(2, 3, 32, 32), tmp_path / "dense.onnx")
    proto = onnx.load(tmp_path / "dense.onnx")
    assert {"Pad", "Slice"} <= {node.op_type for node in proto.graph.node}
    graph = ir.from_proto(proto)
    canonicalize(graph)
    fold_batchnorm(graph)
    decisions = fold_channels(graph)
    found = {
        name: decision.channels - len(decision.kept) for decision in decisions.values() for name in decision.members
    }
    assert found == removed | {"linear": 0}
    assert_exact(proto, graph)
