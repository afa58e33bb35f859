"""A network that choosing is tried on: its file, its calibration data, its candidates, and the search among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from ..errors import CheckFailed, InputError
from ..export.budget import Budget, choose
from ..export.calibration import Samples
from ..export.damage import Candidate
from ..export.fold import opened
from ..export.graphs import copied
from ..export.network import Network
from ..export.passes.fold_channels import fold_channels
from ..export.reporting import Report, silent
from ..export.search import Draft, Search
from ..export.wish import AUTO_FORMS
from ..files import sha256_of
from ..runtime.inputs import Given
from ..runtime.latency import Stopwatch
from .oneshot import CALIBRATION, calibration_inputs, cifar, exported
from .shapes import DECAY, SHAPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..train.data import Dataset

PUBLISHED = ("resnet20", "resnet56")
NETWORKS = (*PUBLISHED, *SHAPES)
SHARE, WIDER = 0.5, 0.7  # of the time: what is asked for, and where that cannot be had


@dataclass
class Subject:
    """One network, its file in a folder of its own. `dataset` and `inputs`, for calibration, are there or not."""

    name: str
    folder: Path
    source: Path
    watch: Stopwatch
    seed: int = 0
    dataset: Dataset | None = None
    inputs: NDArray[np.float32] | None = None
    report: Report = silent

    def anonymous(self, text: str) -> str:
        """A message without the folder that the files happened to lie in."""
        return text.replace(f"{self.folder}/", "")

    @property
    def tile(self) -> int:
        """That of the device."""
        return self.watch.facts.tile

    @cached_property
    def model(self) -> ir.Model:
        """The network as layers are chosen for: folded exactly. Not to be changed."""
        model, _ = opened(self.source, Given(), self.folder)
        fold_channels(model, self.tile)
        return model

    def copy(self) -> ir.Model:
        """The same, to be changed."""
        return copied(self.model)

    @cached_property
    def samples(self) -> Samples | None:
        """Calibration inputs, without labels."""
        if self.inputs is None:
            return None
        inputs, name = self.inputs, self.model.graph.inputs[0].name or ""
        return Samples("calibration", len(inputs), None, lambda start, stop: {name: inputs[start:stop]})

    @cached_property
    def data(self) -> Path | None:
        """The same as a file."""
        if self.inputs is None:
            return None
        path = self.folder / "calibration.npz"
        np.savez(path, allow_pickle=False, **{self.model.graph.inputs[0].name or "": self.inputs})
        return path

    def candidates(self, tile: int) -> dict[str, list[Candidate]]:
        """Every layer's, with ranks on this tile."""
        network = Network(self.model, self.samples, self.report)
        return {name: found.candidates for name, found in network.scored(AUTO_FORMS, tile).items()}

    @cached_property
    def on_tile(self) -> dict[str, list[Candidate]]:
        """Those that `compress` chooses among."""
        return self.candidates(self.tile)

    @cached_property
    def of_any_rank(self) -> dict[str, list[Candidate]]:
        """Those with ranks off the tile too."""
        return self.candidates(1)

    @cached_property
    def search(self) -> Search:
        """Among these."""
        return Search(self.model, self.source.read_bytes(), self.on_tile, None, self.watch, self.report)

    @cached_property
    def planned(self) -> tuple[float, Draft]:
        """The budget and the plan for it, frozen. Raises CheckFailed where neither share of the time can be had."""
        share = next((one for one in (SHARE, WIDER) if self.search.fastest.ratio <= one), None)
        if share is None:
            found = self.search.fastest.ratio
            raise CheckFailed(
                f"expected at most {WIDER:g} of the time, found {found:.3f} at the fastest; nothing to do"
            )
        found = choose(self.search, Budget(share=share), "host", self.report)
        return share, Draft.of(found.candidates)


@dataclass(frozen=True)
class Catalogue:
    """Where networks come from: weights of the published ones by name, and CIFAR-10 for their calibration."""

    weights: Mapping[str, Path]
    data: Path | None
    seed: int

    def identity(self, name: str) -> list[object]:
        """What makes a network this one."""
        return [DECAY] if name in SHAPES else [sha256_of(self._weights_of(name)), CALIBRATION]

    def subject(self, name: str, folder: Path, watch: Stopwatch, report: Report) -> Subject:
        """A network with its file written."""
        source = folder / f"{name}.onnx"
        if name in SHAPES:
            onnx.save(SHAPES[name](), source)
            return Subject(name, folder, source, watch, self.seed, report=report)
        weights = self._weights_of(name)
        if self.data is None:
            raise InputError(f"{name}: expected CIFAR-10 as an npz file; give --data")
        dataset = cifar(self.data)
        exported(name, weights, dataset, source)
        inputs = calibration_inputs(dataset, self.seed)
        return Subject(name, folder, source, watch, self.seed, dataset, inputs, report)

    def _weights_of(self, name: str) -> Path:
        if name not in self.weights:
            raise InputError(f"{name}: expected its published weights, found none; give --weights")
        return self.weights[name]


def weights_by_name(given: Sequence[Path]) -> dict[str, Path]:
    """Files whose names begin with a published network's, in these folders or these themselves."""
    missing = next((path for path in given if not path.exists()), None)
    if missing is not None:
        raise InputError(f"no weights {missing}; give files, or the folder they lie in")
    files = [file for path in given for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return {name: file for name in PUBLISHED for file in files if file.name.startswith(name)}
