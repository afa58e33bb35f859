"""Numbers as text. What was not measured is said in words, never written as 0."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...records import Comparison, Score

NOT_MEASURED = "not measured"
MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
# An accuracy counted on fewer images than this is not known to a hundredth of a point.
_MANY_IMAGES = 10_000
_SI = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def one_line(text: str) -> str:
    """`text` without control, formatting or line-breaking characters, which no name needs."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def decimals_for(value: float, significant: int = 3, most: int = 4) -> int:
    """Decimals that show `value` with that many significant digits, at most `most`."""
    if value == 0 or not math.isfinite(value):
        return 0
    return min(max(significant - 1 - math.floor(math.log10(abs(value))), 0), most)


def aligned(values: Sequence[float | None], missing: str = NOT_MEASURED) -> list[str]:
    """The numbers of one column with equal decimals, three significant digits for the smallest."""
    known = [abs(value) for value in values if value]
    decimals = decimals_for(min(known)) if known else 0
    return [missing if value is None else f"{value:.{decimals}f}" for value in values]


def si(values: Sequence[float | None]) -> tuple[float, str]:
    """(divisor, prefix) that brings the largest of `values` between 1 and 1000: k, M, G."""
    largest = max((abs(value) for value in values if value), default=1.0)
    return next((pair for pair in _SI if largest >= pair[0]), _SI[-1])


def quantity(value: float | None, unit: str = "") -> str:
    """One number with an SI prefix: 1234567 and "B" give "1.23 MB"."""
    if value is None:
        return NOT_MEASURED
    divisor, prefix = si([value])
    decimals = 0 if divisor == 1 else decimals_for(value / divisor)
    return f"{value / divisor:.{decimals}f} {prefix}{unit}".rstrip()


def milliseconds(value_s: float | None) -> str:
    """Seconds as milliseconds with three significant digits."""
    if value_s is None:
        return NOT_MEASURED
    return f"{value_s * 1e3:.{decimals_for(value_s * 1e3)}f} ms"


def interval_decimals(comparison: Comparison) -> int:
    """Two decimals, or as many as it takes for no end of the interval to be rounded onto 1."""
    nearest = min((abs(end - 1) for end in (comparison.low, comparison.high) if end != 1), default=1.0)
    return max(2, decimals_for(nearest, 1))


def ratio_text(comparison: Comparison) -> str:
    """The ratio as a factor: "2.31×"."""
    return f"{comparison.ratio:.{interval_decimals(comparison)}f}×"


def ratio_interval(comparison: Comparison) -> str:
    """The ratio's 95 % interval: "2.28–2.34"."""
    decimals = interval_decimals(comparison)
    return f"{comparison.low:.{decimals}f}{DASH}{comparison.high:.{decimals}f}"


def is_share(score: Score) -> bool:
    """Whether a metric is a share of right answers, shown in percent, where more is better."""
    return score.metric.lower().startswith(("accuracy", "top")) or score.metric.lower().endswith("accuracy")


def _score_number(score: Score, value: float) -> str:
    if not is_share(score):
        return f"{value:.4g}"
    return f"{value * 100:.{1 if score.n < _MANY_IMAGES else 2}f}"


def score_text(score: Score | None) -> str:
    """A score: "96.8 %", another metric with four digits, or "not measured"."""
    if score is None:
        return NOT_MEASURED
    return _score_number(score, score.value) + (" %" if is_share(score) else "")


def score_interval(score: Score) -> str:
    """A score's 95 % interval, in the score's own unit: "96.2–97.3"."""
    return f"{_score_number(score, score.low)}{DASH}{_score_number(score, score.high)}"


def score_change(before: Score, after: Score) -> str:
    """The signed change between two scores: "−0.3 points"."""
    change = after.value - before.value
    sign = MINUS if change < 0 else "+"
    if is_share(before):
        return f"{sign}{_score_number(before, abs(change))} points"
    return f"{sign}{abs(change):.4g}"
