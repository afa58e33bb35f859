"""Pure functions on samples: seconds in; ratios, intervals and quantiles out.

A ratio is baseline time / variant time, so 2.0 is twice as fast. All averaging is of its logarithm, in which
"twice as fast" and "twice as slow" lie equally far from 1.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev, variance
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.special import chdtri, stdtrit

from ..records import Block, Pair

CONFIDENCE = 0.95
# A run counts as undisturbed up to 10 % above the time that 5 % of the runs stay below.
FASTEST, UNDISTURBED = 0.05, 1.10
# Log ratios closer than this count as one: runs of one launch spread by 1 to 5 % where it was tried.
BANDWIDTH = 0.02
_BIN = BANDWIDTH / 8
_SHIFTS, _CLOSE = 100, 1e-7
_MOST_RUNS = 32  # of a block; a thousand differences a couple say all there is to say
MOST_COUNTED = 1 << 20
_ASSURANCE = 0.8  # chdtri takes the share beyond: the spread's upper limit lies at the chi-squared's lower one
# A quantile is read off only with this many samples beyond it; with fewer it is one or two odd runs.
_SAMPLES_BEYOND = 10


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def undisturbed(samples: Sequence[float]) -> float:
    """Median of the undisturbed runs: on a quiet machine that of nearly all, on a disturbed one that of its fast level.

    What a machine adds to a run is never negative, and on a shared one it may be half of a run, in stretches shorter
    than a block: the median of all runs then jumps between two levels.
    """
    times = np.asarray(samples)
    return float(np.median(times[times <= UNDISTURBED * np.quantile(times, FASTEST)]))


def samples_of(pairs: Iterable[Pair], name: str) -> list[float]:
    """All samples of one model, in seconds, in the order they were taken."""
    return [sample for pair in pairs for block in pair.blocks if block.variant == name for sample in block.samples_s]


def pairs_of(pairs: Iterable[Pair], baseline: str, variant: str) -> list[Pair]:
    """The pairs in which two models were timed against each other."""
    return [pair for pair in pairs if (pair.baseline, pair.variant) == (baseline, variant)]


def pair_log_ratio(pair: Pair) -> float:
    """Log of baseline time / variant time in one launch pair: the most frequent one between runs of adjacent blocks.

    Each couple of blocks, taken one right after the other, gives the log ratio of every run of the one to every run of
    the other. Where a machine has two speeds, and changes between them within milliseconds, medians of the two models
    fall into the one or the other by chance; but runs of like speed are the commonest couple whatever the shares are,
    and a ratio between unlike ones is another peak. In the mirrored random order what drifts falls on both alike.
    """
    differences = [
        np.subtract.outer(*(_log_times(one) for one in ((x, y) if x.variant == pair.baseline else (y, x)))).ravel()
        for x, y in zip(pair.blocks[::2], pair.blocks[1::2], strict=True)
        if {x.variant, y.variant} == {pair.baseline, pair.variant} != {pair.variant}
    ]
    if not differences:
        raise ValueError("a pair needs couples of blocks of both its models")
    return most_frequent(np.concatenate(differences))


def _log_times(block: Block) -> np.ndarray:
    times = np.asarray(block.samples_s)
    return np.log(times[:: math.ceil(len(times) / _MOST_RUNS)])


def most_frequent(values: np.ndarray) -> float:
    """The highest point of the density of `values`, with a Gaussian kernel of BANDWIDTH.

    Symmetric noise of any spread leaves it where it is, and so does noise that only adds, unlike a mean or a quantile.
    """
    low = values.min() - _BIN / 2
    counts = np.bincount(((values - low) / _BIN).astype(int)).astype(float)
    peak = low + (int(np.argmax(gaussian_filter1d(counts, BANDWIDTH / _BIN, mode="constant"))) + 0.5) * _BIN
    for _ in range(_SHIFTS):  # mean shift climbs the last part of a bin
        weights = np.exp(-0.5 * ((values - peak) / BANDWIDTH) ** 2)
        before, peak = peak, float(weights @ values / weights.sum())
        if abs(peak - before) < _CLOSE:
            break
    return peak


def ratio_interval(log_ratios: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """exp of the mean of `log_ratios`, one a pair, with Student's t interval over pairs (two or more).

    A percentile bootstrap of 8 values covers 90 % where it claims 95; t covers what it claims when the values
    are near normal, which quantiles over a pair are.
    """
    mean, half = fmean(log_ratios), half_width(log_ratios, confidence)
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def welch_interval(then: Sequence[float], now: Sequence[float]) -> Interval:
    """exp of the difference of means with Welch's interval: the two benches may be unlike noisy."""
    parts = [variance(then) / len(then), variance(now) / len(now)]
    error = math.sqrt(sum(parts))
    freedom = (
        sum(parts) ** 2 / sum(part**2 / (len(logs) - 1) for part, logs in zip(parts, (then, now), strict=True))
        if error
        else 1.0
    )
    half = float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * error
    difference = fmean(then) - fmean(now)
    return Interval(math.exp(difference), math.exp(difference - half), math.exp(difference + half))


def half_width(values: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """Half the width of Student's t interval of the mean: t · s / √n with n − 1 degrees of freedom."""
    n = len(values)
    return float(stdtrit(n - 1, 0.5 + confidence / 2)) * stdev(values) / math.sqrt(n)


def expected_half_width(pairs: int, pilot: Sequence[float]) -> float:
    """The half-width that `pairs` pairs will not exceed in four of five cases, judged by a pilot's log ratios.

    The spread is taken at its upper 80 % limit (chi-squared), since a small pilot often shows too little of it.
    """
    freedom = len(pilot) - 1
    spread = stdev(pilot) * math.sqrt(freedom / float(chdtri(freedom, _ASSURANCE)))
    return float(stdtrit(pairs - 1, 0.5 + CONFIDENCE / 2)) * spread / math.sqrt(pairs)


def pairs_for(half_width: float, pilot: Sequence[float]) -> int:
    """The fewest pairs, two or more, whose expected half-width is at most the one wanted; MOST_COUNTED is for more."""
    enough = 2
    while expected_half_width(enough, pilot) > half_width:
        enough *= 2
        if enough >= MOST_COUNTED:
            return MOST_COUNTED
    fewest = bisect_left(range(enough), True, lo=2, key=lambda n: expected_half_width(n, pilot) <= half_width)
    return max(fewest, 2)


def quantile(samples: Sequence[float], share: float) -> float | None:
    """The sample that `share` of the samples do not exceed (nearest rank); None with too few beyond it.

    The median needs 20 samples, p90 100 and p99 1000.
    """
    beyond = len(samples) * min(share, 1 - share)
    if beyond < _SAMPLES_BEYOND - 1e-9:  # 1000 · (1 − 0.99) is 10 but for rounding
        return None
    return sorted(samples)[math.ceil(share * len(samples) - 1e-9) - 1]


def pairs_wanted(threads: int) -> int:
    """Launch pairs that give a usable interval: whole launches vary more once threads share cores.

    Tried on ResNet-20 and 2 shared cores: half-width 0.25 % with 8 pairs at one thread, 1.4 to 2.5 % at two.
    """
    return 8 if threads == 1 else 24


def geometric_mean(values: Iterable[float]) -> float:
    """exp of the mean logarithm of positive values: the mean that fits ratios."""
    return math.exp(fmean(math.log(value) for value in values))
