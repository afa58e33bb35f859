"""Pick one candidate a layer so that the damage is least within a budget of MACs or of weights.

The lower convex hull of each layer's (cost, damage), walked by falling cost saved per damage: the greedy solution
of the multiple-choice knapsack's relaxation (Sinha & Zoltners, Operations Research 27(3), 1979), off by less than
one step from the optimum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from ..errors import CheckFailed
from .damage import Candidate, Objective


@dataclass(frozen=True)
class Step:
    """A point of the frontier: the choice a layer (None: dense), with the sums."""

    cost: int
    damage: float
    chosen: Mapping[str, Candidate | None]


def frontier(
    dense: Mapping[str, int], candidates: Mapping[str, Sequence[Candidate]], objective: Objective = "macs"
) -> list[Step]:
    """From all layers dense to the least cost, one candidate exchanged at each step."""
    cost, damage = sum(dense.values()), 0.0
    chosen: dict[str, Candidate | None] = dict.fromkeys(dense)
    steps = [Step(cost, damage, dict(chosen))]
    hulls = {name: hull(dense[name], list(candidates.get(name, ())), objective) for name in dense}
    heap = [(_slope(dense[name], 0.0, found[0], objective), name, 0) for name, found in hulls.items() if found]
    heapify(heap)
    while heap:
        _, name, index = heappop(heap)
        new, old = hulls[name][index], chosen[name]
        cost += _cost(new, objective) - (_cost(old, objective) if old else dense[name])
        damage += new.damage - (old.damage if old else 0.0)
        chosen[name] = new
        steps.append(Step(cost, damage, dict(chosen)))
        if index + 1 < len(hulls[name]):
            after = hulls[name][index + 1]
            heappush(heap, (_slope(_cost(new, objective), new.damage, after, objective), name, index + 1))
    return steps


def within(steps: Sequence[Step], budget: int, unit: str = "MACs") -> Step:
    """The first step that costs at most `budget`. Raises CheckFailed, with the least there is."""
    fitting = next((step for step in steps if step.cost <= budget), None)
    if fitting is None:
        least = steps[-1].cost
        raise CheckFailed(
            f"expected at most {budget} {unit}, found {least} at the smallest ranks; allow {least} or more"
        )
    return fitting


def hull(dense: int, candidates: list[Candidate], objective: Objective = "macs") -> list[Candidate]:
    """The candidates on the lower convex hull from (dense, 0), by falling cost."""
    kept: list[Candidate] = []
    cheaper = (one for one in candidates if _cost(one, objective) < dense)
    for candidate in sorted(cheaper, key=lambda one: (-_cost(one, objective), one.damage)):
        if kept and _cost(candidate, objective) == _cost(kept[-1], objective):
            continue
        while kept and candidate.damage <= kept[-1].damage:
            kept.pop()
        while kept:
            before = kept[-2] if len(kept) > 1 else None
            at = (_cost(before, objective), before.damage) if before else (dense, 0.0)
            if _slope(*at, kept[-1], objective) < _slope(*at, candidate, objective):
                break
            kept.pop()
        kept.append(candidate)
    return kept


def _cost(candidate: Candidate, objective: Objective) -> int:
    return candidate.macs if objective == "macs" else candidate.parameters


def _slope(cost: int, damage: float, after: Candidate, objective: Objective) -> float:
    """Damage for each unit of cost saved; less is better."""
    return (after.damage - damage) / max(cost - _cost(after, objective), 1)
