"""Who is timed when, where and for how long: pure decisions, made before the first sample."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import Inconclusive, InputError
from ..records import Facts
from .stats import expected_half_width, pairs_for, pairs_wanted

# A block should last 5 ms, so that the turn between two processes is small beside it, but not over 0.5 s,
# so that baseline and variant alternate faster than a machine drifts.
_BLOCK_MIN_S, _BLOCK_MAX_S = 0.005, 0.5
_BLOCK_MIN_RUNS, _BLOCK_MAX_RUNS = 3, 1000
# Seconds of a pair's turns; with the start of its processes, 8 pairs of a 1 ms model take about 25 s. Three times as
# long made half-widths 1.7 times smaller, from 0.8 to 2.4 s, on a shared machine in a bad hour (0.5 % then 0.3 %).
# With a pool each turn also waits until it sleeps: it spins for some 50 ms (onnxruntime 1.32, tried).
_PAIR_S, _PAIR_WITH_POOL_S = 2.0, 1.0
_SPIN_S = 0.06
_COUPLES_MIN, _COUPLES_MAX = 2, 60
# A slow model's pair takes longer, for so many couples and runs of each: of 8 pairs of a 55 ms network with its copy,
# on a machine of two speeds, 2 couples of 10 runs came to 1.10 (0.84 to 1.43), 4 to 0.998 (0.993 to 1.002).
_COUPLES_SLOW, _RUNS_SLOW, _PAIR_SLOW_S = 6, 40, 20.0
MOST_PAIRS = 200  # an hour of a 1 ms model at two threads; nobody waits for more
_BLOCK_LIMIT_S, _BLOCK_LIMIT_FACTOR = 60.0, 20.0  # a turn that takes 20 times what was expected hangs


@dataclass(frozen=True)
class Options:
    """How to measure. `pairs=None` takes 8 launch pairs a variant at one thread and 24 at more; with `half_width`, of
    the logarithm of a ratio, a pilot of as many pairs chooses the count, and is not used again.

    `cores` is the mask of every process; None takes as many as there are threads, from the last one down
    (interrupts go to the first). `block_runs` is the least number of counted runs in a turn, fewer only for
    models so slow that a turn would last over half a second. `shapes` are of open inputs, `inputs` is an npz
    file with an array for each instead. After the pairs: `rate_hz` runs each model on frames of that rate, `sustain_s`
    without a pause for so long, `operators` profiles it.
    """

    threads: int = 1
    provider: str = "cpu"
    session_config: Mapping[str, str] = field(default_factory=dict)
    pairs: int | None = None
    half_width: float | None = None
    block_runs: int = 20
    dropped_runs: int = 2
    cores: tuple[int, ...] | None = None
    seed: int = 0
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: Path | None = None
    rate_hz: float | None = None
    sustain_s: float | None = None
    operators: bool = False

    @property
    def loads(self) -> int:
        """How many things are asked for after the pairs."""
        return sum(map(bool, (self.rate_hz, self.sustain_s, self.operators)))


@dataclass(frozen=True)
class Turns:
    """Runs of a block, couples of blocks of a pair, seconds after which a block hangs."""

    runs: int
    couples: int
    limit_s: float


def checked_pairs(options: Options) -> int:
    """Launch pairs for each variant; InputError for an option out of range."""
    for what, value, least in (
        ("threads", options.threads, 1),
        ("pairs", options.pairs, 2),
        ("block_runs", options.block_runs, 1),
        ("dropped_runs", options.dropped_runs, 0),
        ("seed", options.seed, 0),
    ):
        if value is not None and value < least:
            raise InputError(f"{what} is {value}; use {least} or more")
    for what, value in (("rate", options.rate_hz), ("time to sustain", options.sustain_s)):
        if value is not None and not 0.1 <= value <= 1e5:
            raise InputError(f"a {what} of {value:g} makes no sense; give 0.1 to 100,000")
    if options.half_width is not None:
        if options.pairs is not None:
            raise InputError("give the number of pairs or the half-width that decides it, not both")
        if not 0 < options.half_width < 1:
            raise InputError(f"a half-width of {options.half_width:g} is not between 0 and 1; write 0.005 for 0.5 %")
    return pairs_wanted(options.threads) if options.pairs is None else options.pairs


def pairs_after_pilot(pilots: Sequence[Sequence[float]], half_width: float, least: int, pair_s: float) -> int:
    """The count of pairs for a half-width, from the log ratios of every variant's pilot, each pair of `pair_s`.

    Raises Inconclusive, with what can be had, where that takes more than MOST_PAIRS.
    """
    wanted = max(pairs_for(half_width, logs) for logs in pilots)
    if wanted <= MOST_PAIRS:
        return max(wanted, least)
    reachable = max(expected_half_width(MOST_PAIRS, logs) for logs in pilots)
    minutes = MOST_PAIRS * len(pilots) * pair_s / 60
    raise Inconclusive(
        f"a half-width of {half_width:.2%} would take {wanted:,} pairs a model here, over {MOST_PAIRS}; ask for "
        f"{reachable:.2%} ({minutes:.0f} min), use fewer threads, or a quieter machine"
    )


def choose_cores(options: Options, facts: Facts) -> list[int]:
    """The core mask of every process; empty where the system cannot pin."""
    available = facts.affinity
    if options.cores is not None:
        if missing := set(options.cores) - set(available):
            raise InputError(f"cores {sorted(missing)} are not available, only {available}; choose among these")
        if options.threads > len(set(options.cores)):
            raise InputError(f"{options.threads} threads do not fit on cores {sorted(set(options.cores))}; add cores")
        return sorted(set(options.cores))
    if available and options.threads > len(available):
        raise InputError(f"{options.threads} threads asked, {len(available)} cores available; use fewer threads")
    return available[-options.threads :]


def choose_turns(run_s: Sequence[float], options: Options) -> Turns:
    """Length and number of the turns, the same for all models, from the seconds that a run of each takes."""
    fastest, slowest = min(run_s), max(run_s)
    runs = max(options.block_runs, round(_BLOCK_MIN_S / fastest))
    runs = max(_BLOCK_MIN_RUNS, min(runs, round(_BLOCK_MAX_S / slowest), max(options.block_runs, _BLOCK_MAX_RUNS)))
    couple_s = 2 * (runs + options.dropped_runs) * sum(run_s) / len(run_s)
    pair_s, wait_s = (_PAIR_S, 0.0) if options.threads == 1 else (_PAIR_WITH_POOL_S, 2 * _SPIN_S)
    slow = min(max(_COUPLES_SLOW, _RUNS_SLOW / runs), _PAIR_SLOW_S / couple_s)
    couples = max(pair_s / (couple_s + wait_s), slow, _COUPLES_MIN)
    couples = 2 * round(min(couples, _COUPLES_MAX) / 2)
    expected_s = (runs + options.dropped_runs) * slowest
    return Turns(runs, couples, _BLOCK_LIMIT_S + _BLOCK_LIMIT_FACTOR * expected_s)


def mirrored_order(names: tuple[str, str], couples: int, seed: int) -> list[str]:
    """Who is timed when: couples in random order, then the same backwards, so that steady drift cancels."""
    rng = random.Random(seed)
    half = [name for _ in range(couples // 2) for name in rng.choice([names, names[::-1]])]
    return half + half[::-1]
