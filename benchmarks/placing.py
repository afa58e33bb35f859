"""Bring a method to a wanted drop: turn its knob until the network that it makes loses nearly as much, and not more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..export.reporting import Report
from ..records import LayerDecision

TRIALS, NEAR = 7, 0.001  # networks judged for a drop, and how far below it is near enough
_INSIDE = 0.15  # of an interval that the next guess keeps away from its ends
_CLOSE = 0.01  # knobs nearer than this, in logarithms, are one

Decisions = Mapping[str, LayerDecision]


@dataclass(frozen=True)
class Method:
    """`decided(knob)` are the factorised layers; a larger knob, a logarithm, damages more. `aware` fits to data."""

    name: str
    decided: Callable[[float], Decisions]
    first: float
    step: float
    last: float
    aware: bool = True


@dataclass(frozen=True)
class Placed:
    """A method's network that loses no more than was wanted."""

    method: str
    decisions: Decisions
    aware: bool
    drop: float


def next_knob(known: Mapping[float, float], wanted: float, first: float, step: float, last: float) -> float:
    """Where to look next for a drop just below `wanted`: outwards until it is enclosed, then between, by the power law
    through both ends.
    """
    if not known:
        return first
    below = [knob for knob, drop in known.items() if drop <= wanted]
    if not below:
        return min(known) - step
    low = max(below)  # drops need not rise with the knob: what lies beyond the last that fits is still open
    above = [knob for knob in known if knob > low]
    if not above:
        return min(low + step, last)
    high = min(above)
    logs = [math.log(max(drop, NEAR / 2)) for drop in (known[low], wanted - NEAR / 2, known[high])]
    share = (logs[1] - logs[0]) / (logs[2] - logs[0])
    return low + (high - low) * min(max(share, _INSIDE), 1 - _INSIDE)


def placed(
    method: Method,
    wanted: float,
    known: Mapping[float, Placed],
    drop_of: Callable[[Decisions, bool], float],
    report: Report,
) -> tuple[float, Placed]:
    """The knob and the network that loses most, but not more than `wanted`, after `TRIALS` or as soon as one is near;
    `known` have been judged before. Without any that fits, everything is dense.
    """
    tried = dict(known)
    for trial in range(TRIALS):
        report(f"{method.name} at {wanted:.0%}", trial, TRIALS)
        drops = {knob: one.drop for knob, one in tried.items()}
        if any(wanted - NEAR <= drop <= wanted for drop in drops.values()):
            break
        knob = next_knob(drops, wanted, method.first, method.step, method.last)
        if any(abs(knob - other) < _CLOSE for other in tried):
            break
        decisions = method.decided(knob)
        tried[knob] = Placed(method.name, decisions, method.aware, drop_of(decisions, method.aware))
    fitting = [knob for knob, one in tried.items() if one.drop <= wanted]
    if not fitting:
        return min(tried) - method.step, Placed(method.name, {}, method.aware, 0.0)
    best = max(fitting, key=lambda knob: (tried[knob].drop, knob))
    return best, tried[best]
