"""onnxsim's structured pruning: whole channels out of a file, put back into the module so that it can learn on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import CheckFailed
from ...export.from_torch import to_onnx
from ...export.shrink import prepare_dense
from ...train.data import Dataset
from ..oneshot import calibration_inputs
from .installed import library, missing, quiet
from .tools import ModuleTool, Setting

SPARSITIES, BATCH, SEED = (0.15, 0.3, 0.45, 0.6), 64, 0


@dataclass(frozen=True)
class OnnxsimPruning:
    """By the norms of filters, or these times the norms of what flows through them; each layer alone, or all in one
    ranking, which leaves coupled layers as they are. It rounds nothing.
    """

    name: str = "onnxsim, structured pruning"
    lines: int = 3
    example: str = (
        "the text of onnxsim.apply_structured_pruning(model, sparsity=0.5, importance_norm='l2', "
        "global_sparsity=False) and of apply_structured_wanda_pruning(…, calibration_data=[{'input': batch}, …])"
    )

    @property
    def missing(self) -> str | None:
        """Where onnxsim is older than its pruning."""
        return missing("onnxsim.pruning")

    def settings(self, network: str, quick: bool) -> Sequence[Setting]:
        """Shares of the channels, with data and without, each layer alone or all together."""
        points = [(0.3, True, False)] if quick else list(product(SPARSITIES, (False, True), (False, True)))
        return [
            Setting(
                self.name,
                f"{share:.0%}, {'with' if aware else 'without'} data{', global' if everywhere else ''}",
                {"sparsity": share, "aware": aware, "global_sparsity": everywhere},
            )
            for share, aware, everywhere in points
        ]

    def apply(self, model: nn.Module, example: Tensor, setting: Setting, data: Dataset) -> nn.Module:
        """Exported and folded, pruned as a file, read back."""
        given = dict(setting.arguments)
        pruning, aware = library("onnxsim"), given.pop("aware")
        with TemporaryDirectory(prefix="rankfold-") as folder:
            exported, folded = Path(folder) / "exported.onnx", Path(folder) / "folded.onnx"
            to_onnx(model, example, exported)
            prepare_dense(exported, folded)
            dense = onnx.load(folded)
        with quiet():
            if aware:
                inputs = calibration_inputs(data, SEED)
                batches = [{dense.graph.input[0].name: part} for part in np.split(inputs, len(inputs) // BATCH)]
                pruned = pruning.apply_structured_wanda_pruning(dense, calibration_data=batches, **given)
            else:
                pruned = pruning.apply_structured_pruning(dense, **given)
        return _rebuilt(model, pruned, example, setting)


def _rebuilt(model: nn.Module, pruned: onnx.ModelProto, example: Tensor, setting: Setting) -> nn.Module:
    """The module with the file's layers, BatchNorm among their numbers."""
    stored = {entry.name: np.array(onnx.numpy_helper.to_array(entry)) for entry in pruned.graph.initializer}
    changed = False
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            changed |= stored[f"{name}.weight"].shape != tuple(layer.weight.shape)
            model.set_submodule(name, _layer(layer, stored[f"{name}.weight"], stored.get(f"{name}.bias")))
        elif isinstance(layer, nn.BatchNorm2d):
            model.set_submodule(name, nn.Identity())
    if not changed:
        raise CheckFailed(f"{setting.name}: onnxsim found no channel that it may take out")
    with torch.no_grad():
        model.eval()(example)
    return model


def _layer(layer: nn.Conv2d | nn.Linear, weight: NDArray[Any], bias: NDArray[Any] | None) -> nn.Module:
    made: nn.Conv2d | nn.Linear
    if isinstance(layer, nn.Linear):
        made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    else:
        groups = len(weight) if layer.groups > 1 else 1  # depthwise
        made = nn.Conv2d(
            weight.shape[1] * groups,
            weight.shape[0],
            layer.kernel_size,  # pyright: ignore[reportArgumentType]
            layer.stride,  # pyright: ignore[reportArgumentType]
            layer.padding,  # pyright: ignore[reportArgumentType]
            layer.dilation,  # pyright: ignore[reportArgumentType]
            groups,
            bias is not None,
        )
    made.weight.data = torch.from_numpy(weight)
    if bias is not None:
        made.bias.data = torch.from_numpy(bias)  # pyright: ignore[reportOptionalMemberAccess]
    return made


TOOLS: Sequence[ModuleTool] = (OnnxsimPruning(),)
