"""Judge a claim about latency, such as "compact <= 0.8 * dense", by the whole interval of a comparison."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import CheckFailed, Inconclusive, InputError
from ..records import Bench, Comparison
from .stats import Interval

_FORM = re.compile(r"\s*(?P<variant>\S.*?)\s*<=\s*(?:(?P<factor>[0-9.eE+-]+)\s*\*\s*)?(?P<reference>[^\s*][^*]*?)\s*")
_MANY_PAIRS = 1000  # beyond this the claim is as good as the estimate itself: more pairs will not tell

ON_THE_LIMIT = "the estimate lies on the limit, more pairs will hardly decide it: move the limit"


@dataclass(frozen=True)
class Gate:
    """latency(variant) <= factor * latency(reference)."""

    variant: str
    factor: float
    reference: str


def parse(text: str) -> Gate:
    """Read `variant <= factor * reference`, or `variant <= reference`; InputError if it is neither."""
    found = _FORM.fullmatch(text)
    try:
        factor = float(found["factor"] or 1) if found else math.nan
    except ValueError:
        factor = math.nan
    if not found or not 0 < factor < math.inf:
        raise InputError(f"gate '{text}' is not understood; write it as \"compact <= 0.8 * dense\"")
    return Gate(found["variant"], factor, found["reference"])


def check_names(gate: Gate, known: Sequence[str]) -> None:
    """InputError if the gate names a model that is not among `known`; it can be asked before any is timed."""
    for name in (gate.variant, gate.reference):
        if name not in known:
            raise InputError(f"gate names '{name}', the bench has {', '.join(known)}; use one of these")


def judge(gate: Gate, bench: Bench) -> str:
    """One line saying that the gate holds with its whole interval.

    CheckFailed if the whole interval violates it; Inconclusive, with an estimate of the pairs it takes, if
    the limit lies inside; InputError if the bench does not compare the two.
    """
    comparison = _find(gate, bench)
    share = _time_share(gate, comparison)
    found = (
        f"{gate.variant} takes {share.value:.3f} of {gate.reference}'s time "
        f"[{share.low:.3f}, {share.high:.3f}], the limit is {gate.factor:g}"
    )
    stands = standing(share, gate.factor)
    if stands == "holds":
        return f"gate holds: {found}"
    if stands == "fails":
        raise CheckFailed(f"gate fails: {found}")
    raise Inconclusive(f"gate is undecided: {found}; {_needed(gate.factor, share, comparison, bench)}")


def standing(share: Interval, limit: float) -> Literal["holds", "fails", "undecided"]:
    """How a limit stands to an interval: only the whole of it decides."""
    if share.high <= limit:
        return "holds"
    return "fails" if share.low > limit else "undecided"


def _find(gate: Gate, bench: Bench) -> Comparison:
    check_names(gate, [variant.name for variant in bench.variants])
    for comparison in bench.comparisons:
        if {comparison.baseline, comparison.variant} == {gate.variant, gate.reference}:
            return comparison
    raise InputError(
        f"'{gate.variant}' and '{gate.reference}' were not timed against each other; "
        f"every model is compared with the first: put '{gate.reference}' first"
    )


def _time_share(gate: Gate, comparison: Comparison) -> Interval:
    """Time of the gate's variant / time of its reference; a comparison's ratio is baseline / variant."""
    if gate.variant == comparison.baseline:
        return Interval(comparison.ratio, comparison.low, comparison.high)
    return Interval(1 / comparison.ratio, 1 / comparison.high, 1 / comparison.low)


def pairs_to_decide(limit: float, share: Interval, pairs: int) -> int | None:
    """Pairs with which the interval would no longer contain `limit`, if its middle stays where it is, and one to spare.

    The half-width falls as 1 / √pairs until it is below the distance to the limit. None where the estimate lies on it.
    """
    half = math.log(share.high / share.low) / 2
    distance = abs(math.log(limit / share.value))
    if distance * math.sqrt(_MANY_PAIRS) < half * math.sqrt(pairs):
        return None
    return math.ceil(pairs * (half / distance) ** 2) + 1


def _needed(limit: float, share: Interval, comparison: Comparison, bench: Bench) -> str:
    """How much longer it takes to decide."""
    pairs = pairs_to_decide(limit, share, comparison.pairs)
    if pairs is None:
        return ON_THE_LIMIT
    more = pairs - comparison.pairs
    seconds = more * _pair_s(comparison, bench)
    return f"about {more} more pairs would decide it, {seconds:.0f} s longer: measure with {pairs} pairs"


def _pair_s(comparison: Comparison, bench: Bench) -> float:
    """Seconds a pair of this comparison took, process start included."""
    ends = [
        pair.blocks[-1].start_s + sum(pair.blocks[-1].samples_s)
        for pair in bench.pairs
        if pair.variant == comparison.variant and pair.blocks
    ]
    return sum(ends) / len(ends) if ends else 0.0
