"""What looks wrong in a measurement, each with a remedy. Every caution is one function from a bench to lines.

Most are read off the samples: a hypervisor may report no steal while whole launches run slow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise
from statistics import median, quantiles

from ..records import Bench, Block, Caution
from .load import slowdown
from .operators import accounted
from .stats import pairs_of, pairs_wanted, ratio_interval, samples_of, undisturbed

# Medians of the launches of one file lie within 1 % on a quiet machine; 6 % apart is another mode.
_MODES_GAP = 1.06
# A block whose median is 15 % above its launch's fast quarter met something; one in ten is no accident.
_BURST_FACTOR, _BURST_SHARE = 1.15, 0.1
# A run that takes twice what its block's runs take lost the core meanwhile; a competitor on it cuts into one in four.
_CUT_FACTOR, _CUT_SHARE = 2.0, 0.03
_FEW_RUNS = 40
_WIDE_HALF_WIDTH = 0.02  # twice what 8 pairs at one thread give on a shared machine
_OTHER_RATIO = 0.005
_MANY_PAIRS = 200  # nobody waits for more
_STEAL_SHARE = 0.005
_SWITCHES_PER_S = 20.0  # kernel threads alone give a few; a competitor on the same core some hundreds
_LOAD_SHARE = 0.3  # of the cores, in runnable processes before we began
_FREQUENCY_CHANGE = 0.05
_CALL_OVERHEAD_S = 50e-6  # entering the runtime from Python and back takes some 5 to 10 µs
_CLOCK_SHARE = 0.005
_HOT = 0.05
_LEAST_ACCOUNTED, _MOST_ACCOUNTED = 0.7, 1.02
_PI_THROTTLED_NOW = 0xF  # low four bits of the Raspberry Pi firmware's get_throttled


def diagnose(bench: Bench) -> list[Caution]:
    """All cautions that a bench deserves, the gravest kinds first."""
    return [Caution(what=what, remedy=remedy) for check in CHECKS for what, remedy in check(bench)]


Findings = Iterator[tuple[str, str]]


def _few_pairs(bench: Bench) -> Findings:
    wanted = pairs_wanted(bench.context.threads)
    for comparison in bench.comparisons:
        if comparison.pairs < wanted:
            yield (
                f"{comparison.variant}: {comparison.pairs} pairs, an interval wants {wanted} at "
                f"{bench.context.threads} thread(s)",
                f"measure with {wanted} pairs or more",
            )


def _few_runs(bench: Bench) -> Findings:
    for name, launches in _block_medians(bench).items():
        runs = min(len(samples_of([pair], name)) for pair in bench.pairs if name in (pair.baseline, pair.variant))
        if runs < _FEW_RUNS:
            yield (
                f"{name}: {runs} runs in a launch, of {median(m for blocks in launches for m in blocks):.2g} s each",
                "of so few runs none may be a frequent one: trust the interval over pairs, and add pairs",
            )


def _wide_interval(bench: Bench) -> Findings:
    for comparison in bench.comparisons:
        half = math.log(comparison.high / comparison.low) / 2
        if half > _WIDE_HALF_WIDTH:
            pairs = math.ceil(comparison.pairs * (half / _WIDE_HALF_WIDTH) ** 2)
            enough = f"measure with {pairs} pairs" if pairs <= _MANY_PAIRS else "more pairs will hardly do"
            yield (
                f"{comparison.variant}: the interval is ±{half:.1%} wide",
                f"{enough}; or choose a quieter machine, or fewer threads",
            )


def _two_ratios(bench: Bench) -> Findings:
    for comparison in bench.comparisons:
        pairs = pairs_of(bench.pairs, comparison.baseline, comparison.variant)
        for which, typical in (("their undisturbed runs", undisturbed), ("the medians of their runs", median)):
            logs = [math.log(typical(samples_of([p], p.baseline)) / typical(samples_of([p], p.variant))) for p in pairs]
            other = ratio_interval(logs)
            far = abs(math.log(other.value / comparison.ratio)) > _OTHER_RATIO
            if far and (other.high < comparison.low or other.low > comparison.high):
                yield (
                    f"{comparison.variant}: {comparison.ratio:.3f}× as fast as a rule, but "
                    f"{other.value:.3f}× by {which}",
                    "what disturbs the machine falls on the two unlike: measure on a quiet one before trusting either",
                )


def _modes(bench: Bench) -> Findings:
    for name, launches in _block_medians(bench).items():
        medians = sorted(median(blocks) for blocks in launches)
        gap, below = max(((b / a, a) for a, b in pairwise(medians)), default=(1.0, 0.0))
        if gap > _MODES_GAP:
            slow = sum(m > below for m in medians)
            yield (
                f"{name}: launches fall into modes, {slow} of {len(medians)} are {gap - 1:.0%} slower or more",
                "the interval covers it, a single launch does not: add pairs; pin cores; check what else runs",
            )


def _bursts(bench: Bench) -> Findings:
    for name, launches in _block_medians(bench).items():
        slow = sum(m > _BURST_FACTOR * _fast_quarter(blocks) for blocks in launches for m in blocks)
        share = slow / sum(len(blocks) for blocks in launches)
        if share > _BURST_SHARE:
            yield (
                f"{name}: {share:.0%} of the blocks are over {_BURST_FACTOR - 1:.0%} slower than their launch's best",
                "something else takes the cores in bursts: stop it or measure on other cores",
            )


def _cut(bench: Bench) -> Findings:
    for variant in bench.variants:
        blocks = [block for pair in bench.pairs for block in pair.blocks if block.variant == variant.name]
        limits = [_CUT_FACTOR * median(block.samples_s) for block in blocks]
        cut = sum(sample > limit for block, limit in zip(blocks, limits, strict=True) for sample in block.samples_s)
        share = cut / max(sum(len(block.samples_s) for block in blocks), 1)
        if share > _CUT_SHARE:
            yield (
                f"{variant.name}: {share:.0%} of the runs take over {_CUT_FACTOR:g} times their block's median",
                "another process gets the core in between: stop it or choose other cores",
            )


def _steal(bench: Bench) -> Findings:
    blocks = [b for pair in bench.pairs for b in pair.blocks if b.steal_s is not None]
    share = sum(b.steal_s or 0.0 for b in blocks) / max(_timed_s(blocks), 1e-9)
    if share > _STEAL_SHARE:
        yield (
            f"the hypervisor took {share:.1%} of the timed seconds",
            "measure on a machine of its own, or when its neighbours are quiet",
        )


def _switches(bench: Bench) -> Findings:
    blocks = [b for pair in bench.pairs for b in pair.blocks if b.involuntary_switches is not None]
    rate = sum(b.involuntary_switches or 0 for b in blocks) / max(_timed_s(blocks), 1e-9)
    if rate > _SWITCHES_PER_S:
        yield (
            f"timed runs were interrupted {rate:.0f} times a second",
            "another process uses the same cores: stop it or choose other cores",
        )


def _load(bench: Bench) -> Findings:
    load, cores = bench.context.weather_before.load_1min, bench.context.facts.logical_cores
    if load is not None and load > _LOAD_SHARE * cores:
        yield (
            f"the machine was busy before we began: load {load:.1f} on {cores} cores",
            "stop other work, wait a minute and measure again",
        )


def _governor(bench: Bench) -> Findings:
    cores = bench.context.cores
    slow = {c.governor for c in bench.context.weather_before.cores if c.core in cores and c.governor}
    if slow - {"performance"}:
        yield (
            f"frequency governor {', '.join(sorted(slow))}: the clock follows the load",
            "measure with --governor performance, or set it before (cpupower frequency-set -g performance)",
        )


def _throttling(bench: Bench) -> Findings:
    before, after = bench.context.weather_before, bench.context.weather_after
    stamps = [w.throttled for w in (before, after) if w and w.throttled]
    if len(set(stamps)) > 1 or any(_throttled_now(stamp) for stamp in stamps):
        yield (
            f"the processor was throttled (flags {' then '.join(dict.fromkeys(stamps))})",
            "cool it, check its power supply, and measure again",
        )


def _hot(bench: Bench) -> Findings:
    for sustained in bench.sustained:
        slower = slowdown(sustained)
        if slower is not None and slower > 1 + _HOT:
            yield (
                f"{sustained.variant}: after {sustained.moments[-1].at_s:.0f} s without a pause a run takes "
                f"{slower - 1:.0%} longer",
                "the board cannot keep its speed: cool it, or plan with the slower time",
            )


def _unaccounted(bench: Bench) -> Findings:
    for table in bench.operators:
        share = accounted(table)
        if not _LEAST_ACCOUNTED < share < _MOST_ACCOUNTED:
            yield (
                f"{table.variant}: its nodes add up to {share:.0%} of a profiled run",
                "the profile's own cost is large beside such short nodes: read shares, not microseconds",
            )


def _frequency(bench: Bench) -> Findings:
    context = bench.context
    if context.weather_after is None:
        return
    after = {c.core: c.frequency_hz for c in context.weather_after.cores}
    for core in context.weather_before.cores:
        now = after.get(core.core)
        if core.core not in context.cores or not core.frequency_hz or not now:
            continue
        if abs(now / core.frequency_hz - 1) > _FREQUENCY_CHANGE:
            yield (
                f"core {core.core} changed from {core.frequency_hz / 1e6:.0f} to {now / 1e6:.0f} MHz",
                "fix the frequency or the governor, let the board cool, and measure again",
            )


def _short(bench: Bench) -> Findings:
    for name, launches in _block_medians(bench).items():
        latency_s = median(m for blocks in launches for m in blocks)
        if latency_s < _CALL_OVERHEAD_S:
            yield (
                f"{name}: a run takes {latency_s * 1e6:.0f} µs, of which the call itself is a large part",
                "read its ratio as that of the calls; time it inside the larger model it belongs to",
            )


def _coarse_clock(bench: Bench) -> Findings:
    for name in (variant.name for variant in bench.variants):
        samples = sorted(samples_of(bench.pairs, name))
        steps = [b - a for a, b in pairwise(samples) if b - a > 1e-12]
        if len(steps) > 1 and min(steps) > _CLOCK_SHARE * median(samples):
            yield (
                f"{name}: the clock advances in steps of {min(steps) * 1e6:.0f} µs, too coarse for its runs",
                "use a board with a finer clock, or time a larger model",
            )


def _providers(bench: Bench) -> Findings:
    used = {
        variant.name: sorted({p for launch in variant.launches for p, n in launch.nodes_by_provider.items() if n})
        for variant in bench.variants
    }
    if len({tuple(providers) for providers in used.values()}) > 1:
        yield (
            "not all models run on the same providers: "
            + "; ".join(f"{name} on {', '.join(providers) or 'unknown'}" for name, providers in used.items()),
            "see which nodes fall back; the ratio compares processors, not only models",
        )


def _hypervisor(bench: Bench) -> Findings:
    if bench.context.facts.hypervisor:
        yield (
            "a virtual machine: it may be slowed without saying so (steal can read 0)",
            "trust the interval, not one launch; confirm on the device itself",
        )


CHECKS = (
    _few_pairs, _few_runs, _wide_interval, _two_ratios, _modes, _bursts, _cut, _steal, _switches, _throttling, _hot,
    _frequency, _governor, _load, _providers, _unaccounted, _short, _coarse_clock, _hypervisor,
)  # fmt: skip


def _block_medians(bench: Bench) -> dict[str, list[list[float]]]:
    """Of each variant, of each of its launches, the medians of the blocks in seconds."""
    medians: dict[str, list[list[float]]] = {}
    for pair in bench.pairs:
        for name in dict.fromkeys(block.variant for block in pair.blocks):
            blocks = [median(block.samples_s) for block in pair.blocks if block.variant == name]
            medians.setdefault(name, []).append(blocks)
    return medians


def _fast_quarter(blocks: list[float]) -> float:
    return quantiles(blocks, n=4, method="inclusive")[0] if len(blocks) > 1 else blocks[0]


def _timed_s(blocks: list[Block]) -> float:
    return sum(sum(block.samples_s) for block in blocks)


def _throttled_now(stamp: str) -> bool:
    flags = re.fullmatch(r"firmware 0x(?:0x)?([0-9a-fA-F]+)", stamp)
    return bool(flags and int(flags[1], 16) & _PI_THROTTLED_NOW)
