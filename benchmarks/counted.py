"""Do instructions on an emulated board rank convolutions as time here does, and better than MACs do?

    python -m rankfold.benchmarks.counted --device qemu-cortex-a72

Five layers, each dense and in three small forms, are timed here in turns and counted there; a line each, then
Spearman's rank correlation with time. The processors differ: it is about what counts see, not about the board.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from scipy.stats import spearmanr

from ..devices import card
from ..export.candidates import DENSE, Place, Way, model_of
from ..export.forms import Pixels
from ..runtime import costs
from ..runtime.counts import Counting
from ..runtime.latency import Stopwatch, key_of
from ..runtime.turns import Options
from .command import in_one_line, machine_of, stopwatch_here

_LAYERS = ((16, 32), (32, 16), (64, 8), (64, 14), (128, 7))  # channels in and out, pixels each way; 3×3


@dataclass(frozen=True)
class Row:
    """One convolution: what it is called and costs; its time is a multiple of the first one's."""

    name: str
    macs: int
    instructions: int
    time: float


def convolutions() -> dict[str, bytes]:
    """Twenty models by their names."""
    found = {}
    for channels, size in _LAYERS:
        place = Place("Conv", (channels, channels, 3, 3), Pixels(*[size] * 4), (1, 1), (1, 1), (1,) * 4, "Relu", True)
        ways = [
            DENSE,
            Way("channel", (channels // 4,)),
            Way("spatial", (channels // 4,)),
            Way("channel", (channels // 8,)),
        ]
        for number, way in enumerate(ways):
            rank = "".join(f" rank {rank}" for rank in way.ranks)
            found[f"{channels} channels, {size}×{size}, {number}: {way.form}{rank}"] = model_of(place, way)
    return found


def rows(models: Mapping[str, bytes], device: str, watch: Stopwatch) -> list[Row]:
    """Each counted on the device and timed here, side by side with the first."""
    with TemporaryDirectory(prefix="rankfold-") as folder:
        paths = [Path(folder) / f"{index}.onnx" for index in range(len(models))]
        for path, model in zip(paths, models.values(), strict=True):
            path.write_bytes(model)
        counted = Counting(card.find(device), Options()).counted(paths)
    first, *others = models.values()
    timed = watch.timed(first, others, whole=True)
    times = [1.0, *(timed[key_of(model)].ratio for model in others)]
    macs = [costs.count(onnx.load_model_from_string(model)).macs or 0 for model in models.values()]
    return [
        Row(name, mac, one.instructions, time)
        for name, mac, one, time in zip(models, macs, counted, times, strict=True)
    ]


def said(found: Sequence[Row]) -> Iterator[str]:
    """A line each, then how well MACs and instructions rank them by their time."""
    for row in found:
        counts = f"{row.instructions:,} instructions ({row.instructions / row.macs:.2f} a MAC)"
        yield f"{row.name}: {row.macs:,} MACs, {counts}, time {row.time:.3f}"
    times = [row.time for row in found]
    for what in ("macs", "instructions"):
        correlation, _ = spearmanr([getattr(row, what) for row in found], times)
        yield f"Spearman's rank correlation of {what} with time over {len(found)} convolutions: {correlation:.3f}"


def main() -> None:
    """Count, time and say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="qemu-cortex-a72", help="an emulated device")
    given = parser.parse_args()
    with in_one_line():
        watch = stopwatch_here()
        print(f"counted on {given.device}, timed on {machine_of(watch.facts)}, one thread")
        for line in said(rows(convolutions(), given.device, watch)):
            print(line)


if __name__ == "__main__":
    main()
