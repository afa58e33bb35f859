"""NNCF: static int8 of an ONNX file. Its structured pruning went with version 3; its masks leave every MAC there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from ...export.shrink import prepare_dense
from ...files import replacing
from ...train.data import Dataset
from ..oneshot import calibration_inputs
from .installed import library, missing, quiet
from .tools import FileTool, Setting

SEED = 0
PRESETS, QUICKLY_CORRECTED = ("PERFORMANCE", "MIXED"), (True, False)


@dataclass(frozen=True)
class Nncf:
    """Weights a channel at a time, activations by their range on calibration images, biases corrected."""

    name: str = "NNCF, int8"
    lines: int = 5
    example: str = (
        "README, Post-Training Quantization, ONNX: calibration_dataset = nncf.Dataset(dataset, transform_fn); "
        "quantized_model = nncf.quantize(onnx_model, calibration_dataset)"
    )

    @property
    def missing(self) -> str | None:
        """Where it is not installed."""
        return missing("nncf")

    def settings(self, network: str, quick: bool) -> Sequence[Setting]:
        """Both presets, both ways to correct biases."""
        points = list(product(PRESETS, QUICKLY_CORRECTED))
        return [
            Setting(
                self.name,
                f"{preset.lower()}, {'fast' if fast else 'slow'} bias correction",
                {"preset": preset, "fast_bias_correction": fast},
            )
            for preset, fast in (points[:1] if quick else points)
        ]

    def apply_file(self, source: Path, target: Path, setting: Setting, data: Dataset) -> None:
        """The README's call on the folded file, with 512 training images."""
        tool, inputs = library("nncf"), calibration_inputs(data, SEED)
        preset = tool.QuantizationPreset[setting.arguments["preset"]]
        with TemporaryDirectory(prefix="rankfold-") as scratch:
            folded = Path(scratch) / "folded.onnx"
            prepare_dense(source, folded)
            model = onnx.load(folded)
        name = model.graph.input[0].name
        with quiet():
            dataset = tool.Dataset([{name: image} for image in np.split(inputs, len(inputs))])
            quantized = tool.quantize(
                model,
                dataset,
                preset=preset,
                subset_size=len(inputs),
                fast_bias_correction=setting.arguments["fast_bias_correction"],
            )
        with replacing(target) as temporary:
            onnx.save(quantized, temporary)


TOOLS: Sequence[FileTool] = (Nncf(),)
