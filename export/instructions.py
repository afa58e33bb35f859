"""Instructions of every layer of a file, each alone between two neighbours, which are counted too and taken off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from ..devices.counting import Counted
from ..records import LayerCount
from .candidates import DENSE, frames_of, model_of, place_of
from .fold import naming, tidy
from .graphs import load
from .layers import layers_of
from .opsets import require_known_opset
from .passes.fold_batchnorm import fold_batchnorm


def layer_counts(source: Path, count: Callable[[Sequence[Path]], list[Counted]]) -> list[LayerCount]:
    """Of the layers that can be written alone: float32, ungrouped, of known sizes; in the graph's order."""
    with naming(source):
        model = load(source)
        require_known_opset(model)
        tidy(model)
        fold_batchnorm(model)
    layers = {layer.name: layer for layer in layers_of(model) if not layer.closed}
    places = {name: place_of(layer) for name, layer in layers.items()}
    models = dict.fromkeys(one for place in places.values() for one in (model_of(place, DENSE), *frames_of(place)))
    found = dict(zip(models, _counted(list(models), count), strict=True))
    rows = []
    for name, place in places.items():
        whole, around = found[model_of(place, DENSE)], [found[frame] for frame in frames_of(place)]
        rows.append(
            LayerCount(
                name=name,
                macs=layers[name].macs,
                instructions=round(whole.instructions - fmean(one.instructions for one in around)),
                multiply_adds=round(whole.multiply_adds - fmean(one.multiply_adds for one in around)),
            )
        )
    return rows


def _counted(models: Sequence[bytes], count: Callable[[Sequence[Path]], list[Counted]]) -> list[Counted]:
    with TemporaryDirectory(prefix="rankfold-") as folder:
        paths = [Path(folder) / f"{index}.onnx" for index in range(len(models))]
        for path, model in zip(paths, models, strict=True):
            path.write_bytes(model)
        return count(paths) if paths else []
