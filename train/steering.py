"""Strength without guessing: a network is to have a share of its MACs, weights or time left by a given moment.

It goes there on a way. Every proximal step looks for the strength that leaves the network just under the way: too weak,
and the step is taken again with twice the strength, then 4 times that, then 8 times; too strong, the other way round;
then between the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import InputError
from ..records import Measure, Solver

SLACK = 0.05  # a step that ends more than this share under the way was too strong
_TRIES = 9  # of strengths in one proximal step: four are enough for three decades
_ALIKE = 1.05  # strengths nearer to each other than this are one


@dataclass(frozen=True)
class Target:
    """When the structure is held: as soon as the network has `share` of a measure left. `steered`: the strengths are
    sought so that this is at a given moment; else they are as given.
    """

    of: Measure
    share: float
    steered: bool


def target_of(
    hold_macs: float | None,
    targets: Mapping[Measure, float | None],
    *,
    moments: tuple[int, int | None],
    strengths: tuple[float, float],
    solver: Solver,
    has_table: bool,
) -> Target | None:
    """The target that is asked for, steered or not, None if there is none.

    `moments` are the optimizer steps before the first proximal step and by which the target is to be met, `strengths` τ
    and λ. Raises InputError for more than one target, and for one that cannot be steered to.
    """
    given = [Target(of, share, True) for of, share in targets.items() if share is not None]
    given += [] if hold_macs is None else [Target("macs", hold_macs, False)]
    if not given:
        return None
    if len(given) > 1:
        raise InputError("give one of hold_macs, target_macs, target_params and target_latency")
    (target,) = given
    if not 0 < target.share <= 1:
        raise InputError(f"a share of {target.of} must be within 0..1 and above 0, found {target.share}")
    if not target.steered:
        return target
    start_at, hold_at = moments
    if hold_at is None or hold_at <= start_at:
        raise InputError("a target needs hold_at, the optimizer step by which it is to be met, after start_at")
    if not any(strengths):
        raise InputError(
            "a target needs low_rank or group above 0: their ratio says what goes, their size is sought; low_rank=0.01 "
            "and group=1 with relative=True will do"
        )
    if solver == "newton-schulz":
        raise InputError("solver 'newton-schulz' lowers no rank before the end; a target needs 'gram' or 'svd'")
    if target.of == "latency" and not (has_table and strengths[0]):
        raise InputError("target_latency needs a table (rankfold latency-table show -o) and low_rank above 0")
    return target


def way(share: float, progress: float) -> float:
    """What is wanted when `progress` (0 to 1) of the time is over: from 1 to `share`, in a straight line."""
    return 1 - (1 - share) * min(1.0, max(0.0, progress))


def seek(take: Callable[[float], float], strength: float, wanted: float, *, most: float, last: bool) -> float:
    """The strength, near `strength` and at most `most`, whose step leaves `wanted` or, if that can be, little less.

    `take(strength)` takes the step anew, from where the first began, and returns what it leaves; the strength returned
    is that of the last one taken. Where no strength leaves the right share, it is one that leaves too much, or, if this
    is the `last` chance, too little. Where no more than `wanted` was left before the step, it is not taken, and
    `strength` is returned: the network rests until the way has come up with it.
    """
    weak, strong = 0.0, math.inf
    tried = following = min(strength, most)
    for number in range(1, _TRIES + 1):
        tried = following
        left = take(tried)
        if wanted * (1 - SLACK) <= left <= wanted:
            return tried
        if left > wanted:
            weak = tried
        else:
            strong = tried
        if number == 1 and left < wanted and take(0.0) <= wanted:
            return strength
        if weak >= most or strong < weak * _ALIKE:
            break
        following = min(most, _next(weak, strong, 2.0**number))
    best = strong if not weak or (last and math.isfinite(strong)) else weak
    if best != tried:
        take(best)
    return best


def _next(weak: float, strong: float, ratio: float) -> float:
    if math.isinf(strong):
        return weak * ratio
    return math.sqrt(weak * strong) if weak else strong / ratio
