"""AIMET's spatial SVD: named in the table with the reason why it is not measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import CheckFailed
from ...train.data import Dataset
from .tools import FileTool, Setting


@dataclass(frozen=True)
class Aimet:
    """It imports torchvision, which the package index has no build of that loads beside torch's for CPUs."""

    name: str = "AIMET, spatial SVD"
    lines: int = 20
    example: str = (
        "docs, Spatial SVD: aimet_torch.compress.ModelCompressor.compress_model(model, eval_callback, …, "
        "compress_scheme=CompressionScheme.spatial_svd, cost_metric=CostMetric.mac, parameters=params)"
    )
    missing: str | None = (
        "aimet-torch 2.42.0 imports torchvision, whose 0.28.0 for torch 2.13 fails to load beside torch's CPU build: "
        "operator torchvision::nms does not exist"
    )

    def settings(self, network: str, quick: bool) -> Sequence[Setting]:
        """None."""
        return []

    def apply_file(self, source: Path, target: Path, setting: Setting, data: Dataset) -> None:
        """Raises CheckFailed with the reason."""
        raise CheckFailed(f"{self.name}: {self.missing}")


TOOLS: Sequence[FileTool] = (Aimet(),)
