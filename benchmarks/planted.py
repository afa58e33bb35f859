"""Pairs of networks of which the second is slow for one planted reason: does `rankfold explain` name it first?

python -m rankfold.benchmarks.planted run [--results FILE] [--time S]     what is missing, a row a pair
python -m rankfold.benchmarks.planted show [--results FILE]

Twenty pairs of residual networks, five reasons, four sizes each. A row says whether the cause came first, its costs,
and the gap, in the ledger and on fresh launches. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from ..export.explain import explain
from ..export.explain.ledger import FIRST, SECOND, Times, over_launches
from ..export.fold import tidy
from ..export.forms import FORMS
from ..export.graphs import refresh_shapes
from ..export.layers import layers_of
from ..export.passes.factorize import factorize
from ..export.passes.fold_batchnorm import fold_batchnorm
from ..records import ChoosingRow, Explanation, LayerDecision, Seconds
from ..runtime.latency import Stopwatch
from ..terminal import bars, duration, progress
from .answers import Answers, Found, markdown
from .command import in_one_line, machine_of, stopwatch_here
from .rows import read
from .shapes import Shaped

RESULTS = Path("docs/results/planted.jsonl")
SIZES = ((16, 32), (24, 24), (32, 32), (48, 16))  # channels of the first stage, pixels
TIME_S = 40.0


def network(
    channels: int, pixels: int, seed: int, widths: Sequence[int] | None = None, moved: bool = False
) -> onnx.ModelProto:
    """Three stages of two residual blocks; `widths` are the channels inside the blocks of each stage."""
    net = Shaped()
    net.generator = np.random.default_rng(seed)
    x = net.relu(net.conv("input", "stem", (channels, 3, 3, 3)))
    before = channels
    for stage in range(3):
        out = channels << stage
        inner = out if widths is None else widths[stage]
        for block in range(2):
            name, stride = f"stage{stage}.{block}", 2 if stage and not block else 1
            y = net.relu(net.conv(x, f"{name}.one", (inner, before, 3, 3), stride))
            if moved:
                y = _there_and_back(net, y)
            y = net.conv(y, f"{name}.two", (out, inner, 3, 3), gain=0.2)
            if before != out or stride > 1:
                x = net.conv(x, f"{name}.short", (out, before, 1, 1), stride, gain=1.0)
            x, before = net.relu(net.op("Add", y, x)), out
    return net.model(net.classes(x, before, 10), pixels)


def _there_and_back(net: Shaped, x: str) -> str:
    """Pixels to channels and back, with an activation between: the runtime's optimiser leaves them where they are."""
    deep = net.relu(net.op("SpaceToDepth", x, blocksize=2))
    return net.op("DepthToSpace", deep, blocksize=2, mode="DCR")


def on_tile_ranks(channels: int, pixels: int, seed: int, tile: int) -> onnx.ModelProto:
    """Every 3×3 convolution as spatial factors, their rank on the tile."""
    return _factored(network(channels, pixels, seed), "spatial", lambda shape: tile * max(1, shape[0] // (2 * tile)))


def off_tile_ranks(channels: int, pixels: int, seed: int, tile: int) -> onnx.ModelProto:
    """The same, one above."""
    return _factored(
        network(channels, pixels, seed), "spatial", lambda shape: tile * max(1, shape[0] // (2 * tile)) + 1
    )


def thin_factors(channels: int, pixels: int, seed: int, tile: int) -> onnx.ModelProto:
    """Every 3×3 convolution in the channel form, at the rank on the tile that saves nearly half of its MACs."""
    return _factored(network(channels, pixels, seed), "channel", lambda shape: max(tile, shape[0] // 2 // tile * tile))


def odd_widths(channels: int, pixels: int, seed: int, tile: int) -> onnx.ModelProto:
    """Blocks narrowed by a quarter or so, to odd widths."""
    return network(channels, pixels, seed, [max(3, (channels << stage) * 3 // 4) | 1 for stage in range(3)])


def moved_numbers(channels: int, pixels: int, seed: int, tile: int) -> onnx.ModelProto:
    """Every block goes to another layout and back."""
    return network(channels, pixels, seed, moved=True)


def denormal_weights(channels: int, pixels: int, seed: int, tile: int) -> onnx.ModelProto:
    """Half of the weights of every 3×3 convolution too small to be normal, as group lasso leaves them."""
    made = network(channels, pixels, seed)
    generator = np.random.default_rng(seed)
    for entry in made.graph.initializer:
        numbers = onnx.numpy_helper.to_array(entry)
        if numbers.ndim == 4 and numbers.shape[2:] == (3, 3):
            tiny = generator.random(numbers.shape) < 0.5
            entry.CopyFrom(onnx.numpy_helper.from_array(np.where(tiny, np.float32(1e-40), numbers), entry.name))
    return made


def _factored(proto: onnx.ModelProto, form: str, rank: Callable[[tuple[int, ...]], int]) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    tidy(model)
    fold_batchnorm(model)
    refresh_shapes(model)
    chosen = {
        layer.name: LayerDecision.model_validate({"form": form, "ranks": [rank(layer.shape)], "reason": "planted"})
        for layer in layers_of(model)
        if layer.shape[2:] == (3, 3) and layer.shape[1] > 3 and rank(layer.shape) < FORMS[form].full_rank(layer.shape)
    }
    factorize(model, chosen)
    return ir.to_proto(model)


def plain(channels: int, pixels: int, seed: int, tile: int) -> onnx.ModelProto:
    """Without a reason to be slow."""
    return network(channels, pixels, seed)


Make = Callable[[int, int, int, int], onnx.ModelProto]
CAUSES: Mapping[str, tuple[str, Make, Make]] = {  # the bar that is to come first, both networks
    "ranks off the tile": ("ranks off the tile", on_tile_ranks, off_tile_ranks),
    "odd widths": ("widths off the tile", plain, odd_widths),
    "numbers moved": ("data movement", plain, moved_numbers),
    "denormals": ("denormals", plain, denormal_weights),
    "thin factors": ("factors", plain, thin_factors),
}


def explained(
    planted: str, number: int, watch: Stopwatch, folder: Path, time_s: float, report: Callable[[str, int, int], None]
) -> Found:
    """What the ledger says of one pair."""
    channels, pixels = SIZES[number]
    cause, *both = CAUSES[planted]
    paths = [folder / "first.onnx", folder / "second.onnx"]
    for path, made in zip(paths, both, strict=True):
        onnx.save(made(channels, pixels, number, watch.facts.tile), path)
    found = explain(paths[0], paths[1], watch, time_s=time_s, report=report)
    assert found.gap is not None, "two files"
    assert found.residual is not None, "two files"
    fresh = _gap(paths, found.second.macs / found.first.macs, watch)
    first = found.bars[0]
    own = next((bar for bar in found.bars if bar.cause == cause), None)
    figures = {
        "first": float(own is not None and first.cause == cause and own.costs.low > 0),
        "costs_ms": 1e3 * (own.costs.value if own else 0.0),
        "low_ms": 1e3 * (own.costs.low if own else 0.0),
        "high_ms": 1e3 * (own.costs.high if own else 0.0),
        "gap_ms": 1e3 * found.gap.value,
        "gap_half_ms": 1e3 * (found.gap.high - found.gap.value),
        "fresh_gap_ms": 1e3 * fresh.value,
        "fresh_half_ms": 1e3 * (fresh.high - fresh.value),
        "residual_ms": 1e3 * found.residual.value,
    }
    return Found(figures, ledger_in_words(found))


def ledger_in_words(found: Explanation) -> str:
    """Every bar and the rest, in a line."""
    assert found.residual is not None, "two files"
    told = "; ".join(f"{bar.cause} {1e3 * bar.costs.value:+.3f}" for bar in found.bars)
    return f"{told}; not explained {1e3 * found.residual.value:+.3f} ms"


def _gap(paths: Sequence[Path], share: float, watch: Stopwatch) -> Seconds:
    """The same gap on fresh launches: what the second takes beyond its share of the MACs."""
    times = Times(SECOND, paths[1].read_bytes())
    for _ in range(2):
        times.add(watch, {FIRST: paths[0].read_bytes()})
    return over_launches(times.of(SECOND) - share * times.of(FIRST))


def run(answers: Answers, watch: Stopwatch, time_s: float) -> Iterator[str]:
    """Every pair that has no row yet; a line for each."""
    with bars() as new_bar:
        report = progress(new_bar)
        for planted in CAUSES:
            for number in range(len(SIZES)):
                with tempfile.TemporaryDirectory(prefix="rankfold-") as folder:
                    ask = partial(explained, planted, number, watch, Path(folder), time_s, report)
                    row = answers.once("planted", planted, [number, *SIZES[number], time_s], ask)
                yield f"{planted} {number}: {'first' if row.figures['first'] else 'NOT FIRST'}; {row.note}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "show"])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--time", type=float, default=TIME_S, help="seconds a pair")
    given = parser.parse_args()
    with in_one_line():
        if given.command == "run":
            began = time.monotonic()
            watch = stopwatch_here()
            for line in run(Answers(given.results, machine_of(watch.facts), 1, 0), watch, given.time):
                print(line, flush=True)
            print(duration(time.monotonic() - began))
        print(markdown(read(given.results, ChoosingRow)))


if __name__ == "__main__":
    main()
