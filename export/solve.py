"""Choose one option a layer, and one width a group, exactly: numbers in, choice out.

A multiple-choice knapsack with side conditions, as one mixed integer linear programme (`scipy.optimize.milp`, HiGHS):
a binary for each width of a group and for each option of a layer; an option that presumes widths is open only where
its groups have them. What options take only while they run (peaks) has one more variable a resource, at least as large
as every layer's. Layers alone under one limit are first decided by a price for it, which is often near enough. The gap
says how far from the optimum the choice may be.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from ..errors import CheckFailed, Infeasible

What = TypeVar("What")
_SECONDS = 60.0
_OUT_OF_TIME = 1  # a status of scipy.optimize.milp
_GAP = 1e-4
_SLACK = 1e-9  # of a limit: rounding of sums
_EXCHANGED, _EXCHANGES = 600, 60  # options that two layers may change to at once, and how often
_DEAREST, _HALVINGS = 1e12, 60  # of a unit of the limited resource, and of the interval its price lies in


@dataclass(frozen=True)
class Option(Generic[What]):
    """One way to have a layer: what it costs by resource (seconds, MACs, bytes, damage), the widths it presumes, and
    what it takes only while it runs: of these peaks the largest counts.
    """

    what: What
    costs: Mapping[str, float]
    widths: Mapping[str, int] = field(default_factory=dict)
    peaks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice(Generic[What]):
    """An option for every layer, a width for every group, their sums, and how far the optimum may be, as a share."""

    options: Mapping[str, Option[What]]
    widths: Mapping[str, int]
    totals: Mapping[str, float]
    gap: float


@dataclass(frozen=True)
class Problem(Generic[What]):
    """`layers` with their options; `groups` with each width's own costs; `base` costs and `floor` peaks whatever is
    chosen.
    """

    layers: Mapping[str, Sequence[Option[What]]]
    groups: Mapping[str, Mapping[int, Mapping[str, float]]] = field(default_factory=dict)
    base: Mapping[str, float] = field(default_factory=dict)
    floor: Mapping[str, float] = field(default_factory=dict)

    def solve(self, minimise: str, limits: Mapping[str, float], seconds: float = _SECONDS) -> Choice[What]:
        """The choice with the least of `minimise` among those within `limits`, each an upper end of a sum.

        Raises Infeasible where there is none, CheckFailed where none was found within `seconds`.
        """
        kept = {name: _useful(options, [minimise, *limits]) for name, options in self.layers.items()}
        bounds = [limits[name] - self.base.get(name, 0.0) for name in limits]
        if len(limits) == 1 and not self.groups:
            kept, near, gap = _by_price(kept, minimise, next(iter(limits)), bounds[0])
            if near and gap <= _GAP:
                return Choice(near, {}, self._totals(near, {}), gap)
        programme = _Programme(self, kept, [minimise, *limits])
        found = programme.solved(bounds, seconds)
        if found is None:
            asked = ", ".join(f"{name} at most {limit:g}" for name, limit in limits.items())
            raise Infeasible(f"no choice has {asked}; allow more")
        options, widths, gap = found
        return Choice(options, widths, self._totals(options, widths), gap)

    def _totals(self, options: Mapping[str, Option[What]], widths: Mapping[str, int]) -> dict[str, float]:
        totals: dict[str, float] = defaultdict(float, self.base)
        costs = [one.costs for one in options.values()] + [self.groups[name][width] for name, width in widths.items()]
        for one in costs:
            for name, cost in one.items():
                totals[name] += float(cost)
        for name in {name for one in options.values() for name in one.peaks} | set(self.floor):
            totals[name] += max([self.floor.get(name, 0.0), *(one.peaks.get(name, 0.0) for one in options.values())])
        return dict(totals)


def _useful(options: Sequence[Option[What]], resources: Sequence[str]) -> list[Option[What]]:
    """Without those that another of the same widths equals or beats in every resource."""
    alike: dict[tuple[tuple[str, int], ...], list[Option[What]]] = defaultdict(list)
    for one in options:
        alike[tuple(sorted(one.widths.items()))].append(one)
    return [one for same in alike.values() for one in _undominated(same, resources)]


def _undominated(options: Sequence[Option[What]], resources: Sequence[str]) -> list[Option[What]]:
    costs = np.array([[of.get(name, 0.0) for of in (one.costs, one.peaks) for name in resources] for one in options])
    costs = costs[:, np.ptp(costs, axis=0) > 0]
    order = np.lexsort(costs.T[::-1]) if costs.shape[1] else np.arange(len(options))
    kept: list[int] = []
    if costs.shape[1] == 2:  # by rising cost, each must be lower in the other than all before it
        lowest = np.minimum.accumulate(np.concatenate([[np.inf], costs[order, 1]]))
        kept = order[costs[order, 1] < lowest[:-1]].tolist()
    else:
        for index in order.tolist():
            if not kept or not np.all(costs[kept] <= costs[index], axis=1).any():
                kept.append(index)
    return [options[index] for index in sorted(kept)]


def _by_price(
    layers: Mapping[str, Sequence[Option[What]]], minimise: str, limited: str, bound: float
) -> tuple[dict[str, list[Option[What]]], dict[str, Option[What]], float]:
    """Where layers alone share one limit: the options that an optimum may have, a choice within the limit, and how far
    that may be from the optimum, as a share.

    A unit of the limited resource gets the lowest price at which the best choice keeps the limit (Lagrangian bound;
    Everett, Operations Research 11(3), 1963); what that leaves of the limit is spent greedily, by one layer and then
    by two at once. Options whose bound lies above this choice are none (variable fixing, Nauss, Management Science
    24(12), 1978). Without such a price nothing is ruled out and no choice is there.
    """
    everything = {name: list(options) for name, options in layers.items()}
    unknown = everything, {}, math.inf
    if any(one.peaks.get(name) for options in layers.values() for one in options for name in (minimise, limited)):
        return unknown
    every = [one for options in everything.values() for one in options]
    if not all(everything.values()) or not every:
        return unknown
    starts = np.cumsum([0, *map(len, everything.values())])[:-1]
    owner = np.repeat(np.arange(len(everything)), [len(options) for options in everything.values()])
    cost, use = (np.array([one.costs.get(name, 0.0) for one in every]) for name in (minimise, limited))

    def best(price: float) -> NDArray[np.intp]:
        """Of every layer, the option that is best at a price."""
        priced = cost + price * use
        least = np.flatnonzero(priced == np.minimum.reduceat(priced, starts)[owner])
        return least[np.unique(owner[least], return_index=True)[1]]

    def named(at: NDArray[np.intp]) -> dict[str, Option[What]]:
        return {name: every[index] for name, index in zip(everything, at.tolist(), strict=True)}

    at, low, high = best(0.0), 0.0, 1.0
    if use[at].sum() <= bound:
        return everything, named(at), 0.0
    while use[best(high)].sum() > bound and high < _DEAREST:
        low, high = high, high * 4
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if use[best(middle)].sum() <= bound else (middle, high)
    at = best(high)
    if use[at].sum() > bound:
        return unknown
    reduced: NDArray[np.float64] = cost + high * use
    least = np.minimum.reduceat(reduced, starts)
    lowest = float(least.sum() - high * bound)
    near = np.argsort(reduced - least[owner], kind="stable")[:_EXCHANGED]
    _spend(at, bound, cost, use, owner, near, lowest / (1 - _GAP))
    reached = float(cost[at].sum())
    slack = reached - lowest
    room = slack * (1 + _GAP) + _SLACK * (abs(reached) + 1)
    kept = reduced - least[owner] <= room
    left = {
        name: [one for one, keep in zip(options, kept[start : start + len(options)], strict=True) if keep]
        for (name, options), start in zip(everything.items(), starts.tolist(), strict=True)
    }
    gap = max(slack, 0.0) / abs(reached) if reached else 0.0
    return left, named(at), gap


def _spend(
    at: NDArray[np.intp],
    bound: float,
    cost: NDArray[np.float64],
    use: NDArray[np.float64],
    owner: NDArray[np.intp],
    near: NDArray[np.intp],
    enough: float,
) -> None:
    """Change the options `at` to cheaper ones as long as the bound allows: of one layer, the best first; then, until
    the sum is `enough`, of two at once among those of `near`.
    """
    while True:
        gain = np.where(use - use[at][owner] <= bound - use[at].sum(), cost[at][owner] - cost, 0.0)
        found = int(gain.argmax())
        if gain[found] <= 0:
            break
        at[owner[found]] = found
    whose = owner[near]
    for _ in range(_EXCHANGES):
        more, gain = use[near] - use[at][whose], cost[at][whose] - cost[near]
        fits = (np.add.outer(more, more) <= bound - use[at].sum()) & (whose[:, None] != whose)
        gains = np.where(fits, np.add.outer(gain, gain), 0.0)
        pair = list(np.unravel_index(int(gains.argmax()), gains.shape))
        if gains[tuple(pair)] <= 0 or cost[at].sum() <= enough:
            break
        at[whose[pair]] = near[pair]


class _Programme(Generic[What]):
    """The variables and rows: first the widths of all groups, then the options of all layers, then a peak for each
    resource that has any.
    """

    def __init__(
        self, problem: Problem[What], layers: Mapping[str, Sequence[Option[What]]], resources: Sequence[str]
    ) -> None:
        self._widths = [(group, width) for group, widths in problem.groups.items() for width in widths]
        self._options = [(layer, one) for layer, options in layers.items() for one in options]
        costs = [problem.groups[group][width] for group, width in self._widths]
        costs += [one.costs for _, one in self._options]
        used = [name for name in resources if name in problem.floor or self._has_peaks(name)]
        costs += [{name: 1.0} for name in used]
        self._costs = np.array([[one.get(name, 0.0) for one in costs] for name in resources])
        self._floors = [problem.floor.get(name, 0.0) for name in used]
        self._peaks: list[tuple[list[int], list[float]]] = []
        self._rows: list[tuple[list[int], list[float], float]] = []
        at = {which: index for index, which in enumerate(self._widths)}
        members: dict[str, list[int]] = defaultdict(list)
        open_to: dict[tuple[str, str, int], list[int]] = defaultdict(list)
        for (group, _), index in at.items():
            members[f"group {group}"].append(index)
        for index, (layer, one) in enumerate(self._options, len(self._widths)):
            members[f"layer {layer}"].append(index)
            for group in one.widths:
                open_to[layer, group, one.widths[group]].append(index)
        for indices in members.values():
            self._rows.append((indices, [1.0] * len(indices), 1.0))
        for which, name in enumerate(used, len(costs) - len(used)):
            for layer in layers:
                indices = members[f"layer {layer}"]
                own = [self._options[index - len(self._widths)][1].peaks.get(name, 0.0) for index in indices]
                self._peaks.append(([*indices, which], [*own, -1.0]))
        presumed = {(layer, group) for layer, group, _ in open_to}
        for layer, group in sorted(presumed):
            for width in problem.groups[group]:
                indices = open_to.get((layer, group, width), [])
                self._rows.append(([*indices, at[group, width]], [*[1.0] * len(indices), -1.0], 0.0))

    def solved(
        self, bounds: Sequence[float], seconds: float
    ) -> tuple[dict[str, Option[What]], dict[str, int], float] | None:
        """Options by layer, widths by group, and the gap; None where there is no choice, CheckFailed where time ran out
        before one was found.
        """
        count, peaks = self._costs.shape[1], len(self._floors)
        scale = np.abs(self._costs[:, : count - peaks]).sum(axis=1)
        scale[scale == 0] = 1.0
        unit = max([1.0, *self._floors, *(abs(own) for _, numbers in self._peaks for own in numbers)])
        columns = np.ones(count)
        columns[count - peaks :] = unit  # peak variables count in units of the largest
        costs = self._costs * columns / scale[:, None]
        limits = np.array(bounds) / scale[1:]
        ends: Any = np.array([end for *_, end in self._rows])
        most: Any = limits + _SLACK
        constraints = [LinearConstraint(_matrix([row[:2] for row in self._rows], count), ends, ends)]
        if self._peaks:
            below = [(indices, [*(own / unit for own in numbers[:-1]), -1.0]) for indices, numbers in self._peaks]
            constraints.append(LinearConstraint(_matrix(below, count), -np.inf, 0.0))
        if len(limits):
            constraints.append(LinearConstraint(costs[1:], -np.inf, most))
        lowest: Any = np.zeros(count)
        lowest[count - peaks :] = [floor / unit for floor in self._floors]
        with _nothing_printed():
            found = milp(
                costs[0] * count,
                integrality=np.arange(count) < count - peaks,
                bounds=Bounds(lowest, 1),
                constraints=constraints,
                options={"time_limit": seconds, "mip_rel_gap": _GAP},
            )
        if found.x is None and found.status == _OUT_OF_TIME:
            raise CheckFailed(
                f"no choice among {count - peaks} ways and widths was found within {seconds:g} s; "
                "give a wider limit, one --form, or no --widths"
            )
        if found.x is None:
            return None
        chosen = np.flatnonzero(found.x[: count - peaks] > 0.5).tolist()
        first = len(self._widths)
        widths = dict(self._widths[index] for index in chosen if index < first)
        options = dict(self._options[index - first] for index in chosen if index >= first)
        return options, widths, float(found.mip_gap or 0.0)

    def _has_peaks(self, name: str) -> bool:
        return any(one.peaks.get(name) for _, one in self._options)


@contextmanager
def _nothing_printed() -> Iterator[None]:
    """Keep off stdout what HiGHS prints there now and then, whatever its options say."""
    flush = ctypes.CDLL(None).fflush
    try:
        stdout = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    flush(None)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(stdout, 1)
        os.close(stdout)


def _matrix(rows: Sequence[tuple[list[int], list[float]]], count: int) -> csr_array:
    data = [number for _, numbers in rows for number in numbers]
    columns = [index for indices, _ in rows for index in indices]
    at = [row for row, (indices, _) in enumerate(rows) for _ in indices]
    return csr_array((data, (at, columns)), shape=(len(rows), count))
