"""Times of what was made: a short contest of all points, launch pairs with the dense network of those that count."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import onnxruntime

from ...devices import card
from ...devices.local import LocalTransport
from ...files import digest, sha256_of
from ...records import Bench, Comparison, Pair, PeerTime
from ...runtime.kept import Kept
from ...runtime.latency import Stopwatch, key_of
from ...runtime.measure import measure
from ...runtime.stats import Interval, ratio_interval
from ...runtime.turns import Options
from ...terminal import bars
from ..command import machine_of
from ..transports import Bare

_AT_ONCE = 6  # models of a short contest
QUICK_PAIRS = 2


def roughly(
    watch: Stopwatch, dense: Path, files: Sequence[Path], report: Callable[[int, int], None]
) -> dict[Path, float]:
    """Each network's time as a share of the dense one's, a few at a time in processes of their own."""
    reference, found = dense.read_bytes(), {}
    for start in range(0, len(files), _AT_ONCE):
        report(start, len(files))
        contents = {file: file.read_bytes() for file in files[start : start + _AT_ONCE]}
        timed = watch.timed(reference, list(contents.values()), whole=True)
        found |= {file: timed[key_of(content)].ratio for file, content in contents.items()}
    return found


def in_pairs(folder: Path, dense: Path, files: Mapping[str, Path], options: Options) -> dict[str, PeerTime]:
    """Launch pairs by the harness, with peak memory, then half as many by a bare loop; the dense network's come along
    under its own name, "dense". What is measured when it is killed goes on.
    """
    models = [("dense", dense), *files.items()]
    bench = _resumed(folder, "harness", models, options)
    pairs = max(2, (bench.comparisons[0].pairs + 1) // 2)
    bare = _resumed(folder, "bare", models, replace(options, pairs=pairs), Bare())
    loops = {one.variant: one for one in bare.comparisons}
    found = {one.variant: _time(bench, one, loops[one.variant], options) for one in bench.comparisons}
    itself = Comparison(baseline="dense", variant="dense", ratio=1.0, low=1.0, high=1.0, pairs=0)
    return {"dense": _time(bench, itself, itself, options), **found}


def duel(folder: Path, peer: Path, ours: Path, options: Options) -> tuple[Comparison, Comparison]:
    """How many times as fast ours is as the peer, by the harness and by a bare loop, as many pairs of each."""
    models = [("peer", peer), ("rankfold", ours)]
    harness = _resumed(folder, "duel", models, options).comparisons[0]
    return harness, _resumed(folder, "bare duel", models, options, Bare()).comparisons[0]


def _resumed(
    folder: Path,
    what: str,
    models: Sequence[tuple[str, Path]],
    options: Options,
    transport: LocalTransport | None = None,
) -> Bench:
    """A bench whose finished pairs outlive us, as does the whole."""
    told = [what, [sha256_of(path) for _, path in models], options.threads, options.pairs, onnxruntime.__version__]
    part = folder / f"{what.replace(' ', '-')}-{digest(told)}.part"
    whole = part.with_suffix(".json")
    if whole.exists():
        return Bench.read(whole)
    kept = Kept(part, resume=part.exists())
    with bars() as new_bar:
        bar = new_bar(f"measuring, {what}")
        bench = measure(
            models,
            transport or LocalTransport(),
            card.find("host"),
            options,
            lambda now: bar.show(now.done, now.total, now.left_s, now.what),
            kept=kept,
        )
    bench.write(whole)
    kept.forget()
    return bench


def _time(bench: Bench, found: Comparison, bare: Comparison, options: Options) -> PeerTime:
    p50 = middle(bench.pairs, found.variant)
    variant = next(one for one in bench.variants if one.name == found.variant)
    peaks = [launch.peak_rss_bytes for launch in variant.launches if launch.peak_rss_bytes is not None]
    return PeerTime(
        speedup=found.ratio,
        low=found.low,
        high=found.high,
        p50_s=p50.value,
        p50_low_s=p50.low,
        p50_high_s=p50.high,
        peak_rss_bytes=round(median(peaks)) if peaks else None,
        bare=bare.ratio,
        bare_low=bare.low,
        bare_high=bare.high,
        pairs=found.pairs,
        threads=options.threads,
        machine=machine_of(bench.context.facts),
    )


def middle(pairs: Sequence[Pair], name: str) -> Interval:
    """Median run of a launch in seconds: geometric mean over launches, and its interval."""
    found = [[s for block in pair.blocks if block.variant == name for s in block.samples_s] for pair in pairs]
    return ratio_interval([math.log(median(samples)) for samples in found if samples])
