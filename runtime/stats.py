"""Pure functions on samples: seconds in; ratios, intervals and quantiles out.

A ratio is baseline time / variant time, so 2.0 is twice as fast. All averaging is of its logarithm, in which
"twice as fast" and "twice as slow" lie equally far from 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, median, stdev
from typing import NamedTuple

from scipy.special import stdtrit

from ..records import Pair

CONFIDENCE = 0.95
# A quantile is read off only with this many samples beyond it; with fewer it is one or two odd runs.
_SAMPLES_BEYOND = 10


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def pair_log_ratio(pair: Pair) -> float:
    """Log of baseline time / variant time in one launch pair: the median over its couples of blocks.

    The blocks are taken two by two as they were timed, each couple one of the baseline and one of the
    variant, and no block serves twice: couples are then independent but for what the launch has in common.
    A couple is the log ratio of the two blocks' medians, so that an interrupted run does not count; the
    median over couples drops a burst that fell on one block. The mirrored order has as many couples
    baseline-first as variant-first: a steady drift moves half of them up, half down, and the median stays.
    """
    medians = [(block.variant == pair.baseline, median(block.samples_s)) for block in pair.blocks]
    couples = list(zip(medians[::2], medians[1::2], strict=True))
    if not couples or any(first[0] == second[0] for first, second in couples):
        raise ValueError("blocks must come in couples, one of the baseline and one of the variant")
    return median(math.log(a / b) if a_is_baseline else math.log(b / a) for (a_is_baseline, a), (_, b) in couples)


def ratio_interval(log_ratios: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """exp of the mean of `log_ratios`, one a pair, with Student's t interval over pairs (two or more).

    A percentile bootstrap of 8 values covers 90 % where it claims 95; t covers what it claims when the values
    are near normal, which medians over a pair are.
    """
    mean, half = fmean(log_ratios), half_width(log_ratios, confidence)
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def half_width(values: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """Half the width of Student's t interval of the mean: t · s / √n with n − 1 degrees of freedom."""
    n = len(values)
    return float(stdtrit(n - 1, 0.5 + confidence / 2)) * stdev(values) / math.sqrt(n)


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
