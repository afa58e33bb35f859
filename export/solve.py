"""Choose one option a layer, and one width a group, exactly: numbers in, choice out.

A multiple-choice knapsack with side conditions, as one mixed integer linear programme (`scipy.optimize.milp`, HiGHS):
a binary for each width of a group and for each option of a layer; an option that presumes widths is open only where
its groups have them. The gap says how far from the optimum the choice may be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from ..errors import CheckFailed

What = TypeVar("What")
_SECONDS = 60.0
_GAP = 1e-4
_SLACK = 1e-9  # of a limit: rounding of sums


@dataclass(frozen=True)
class Option(Generic[What]):
    """One way to have a layer: what it costs by resource (seconds, MACs, bytes, damage), the widths it presumes."""

    what: What
    costs: Mapping[str, float]
    widths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice(Generic[What]):
    """An option for every layer, a width for every group, their sums, and how far the optimum may be, as a share."""

    options: Mapping[str, Option[What]]
    widths: Mapping[str, int]
    totals: Mapping[str, float]
    gap: float


@dataclass(frozen=True)
class Problem(Generic[What]):
    """`layers` with their options; `groups` with each width's own costs; `base` costs whatever is chosen."""

    layers: Mapping[str, Sequence[Option[What]]]
    groups: Mapping[str, Mapping[int, Mapping[str, float]]] = field(default_factory=dict)
    base: Mapping[str, float] = field(default_factory=dict)

    def least(self, resource: str, seconds: float = _SECONDS) -> Choice[What]:
        """The choice with the least of one resource, nothing else considered."""
        return self.solve(resource, {}, seconds)

    def solve(self, minimise: str, limits: Mapping[str, float], seconds: float = _SECONDS) -> Choice[What]:
        """The choice with the least of `minimise` among those within `limits`, each an upper end of a sum.

        Raises CheckFailed where there is none, or none was found within `seconds`.
        """
        kept = {name: _useful(options, [minimise, *limits]) for name, options in self.layers.items()}
        programme = _Programme(self, kept, [minimise, *limits])
        bounds = [limits[name] - self.base.get(name, 0.0) for name in limits]
        found = programme.solved(bounds, seconds)
        if found is None:
            asked = ", ".join(f"{name} at most {limit:g}" for name, limit in limits.items())
            raise CheckFailed(f"no choice has {asked}; allow more")
        options, widths, gap = found
        return Choice(options, widths, self._totals(options, widths), gap)

    def _totals(self, options: Mapping[str, Option[What]], widths: Mapping[str, int]) -> dict[str, float]:
        totals: dict[str, float] = defaultdict(float, self.base)
        costs = [one.costs for one in options.values()] + [self.groups[name][width] for name, width in widths.items()]
        for one in costs:
            for name, cost in one.items():
                totals[name] += float(cost)
        return dict(totals)


def _useful(options: Sequence[Option[What]], resources: Sequence[str]) -> list[Option[What]]:
    """Without those that another of the same widths equals or beats in every resource."""
    alike: dict[tuple[tuple[str, int], ...], list[Option[What]]] = defaultdict(list)
    for one in options:
        alike[tuple(sorted(one.widths.items()))].append(one)
    return [one for same in alike.values() for one in _undominated(same, resources)]


def _undominated(options: Sequence[Option[What]], resources: Sequence[str]) -> list[Option[What]]:
    costs = np.array([[one.costs.get(name, 0.0) for name in resources] for one in options])
    beats = np.all(costs[:, None] <= costs[None], axis=2)  # row no worse than column
    alike = beats & beats.T
    beats &= ~alike | (np.arange(len(options))[:, None] < np.arange(len(options)))  # the first of equals stays
    return [one for one, beaten in zip(options, beats.any(axis=0).tolist(), strict=True) if not beaten]


class _Programme(Generic[What]):
    """The variables and rows: first the widths of all groups, then the options of all layers."""

    def __init__(
        self, problem: Problem[What], layers: Mapping[str, Sequence[Option[What]]], resources: Sequence[str]
    ) -> None:
        self._widths = [(group, width) for group, widths in problem.groups.items() for width in widths]
        self._options = [(layer, one) for layer, options in layers.items() for one in options]
        costs = [problem.groups[group][width] for group, width in self._widths]
        costs += [one.costs for _, one in self._options]
        self._costs = np.array([[one.get(name, 0.0) for one in costs] for name in resources])
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
        presumed = {(layer, group) for layer, group, _ in open_to}
        for layer, group in sorted(presumed):
            for width in problem.groups[group]:
                indices = open_to.get((layer, group, width), [])
                self._rows.append(([*indices, at[group, width]], [*[1.0] * len(indices), -1.0], 0.0))

    def solved(
        self, bounds: Sequence[float], seconds: float
    ) -> tuple[dict[str, Option[What]], dict[str, int], float] | None:
        """Options by layer, widths by group, and the gap; None where there is no choice."""
        count = self._costs.shape[1]
        scale = np.abs(self._costs).sum(axis=1)
        scale[scale == 0] = 1.0
        costs = self._costs / scale[:, None]
        limits = np.array(bounds) / scale[1:]
        ends: Any = np.array([end for *_, end in self._rows])
        most: Any = limits + _SLACK
        constraints = [LinearConstraint(self._matrix(count), ends, ends)]
        if len(limits):
            constraints.append(LinearConstraint(costs[1:], -np.inf, most))
        found = milp(
            costs[0] * count,
            integrality=np.ones(count),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"time_limit": seconds, "mip_rel_gap": _GAP},
        )
        if found.x is None:
            return None
        chosen = np.flatnonzero(found.x > 0.5).tolist()
        first = len(self._widths)
        widths = dict(self._widths[index] for index in chosen if index < first)
        options = dict(self._options[index - first] for index in chosen if index >= first)
        return options, widths, float(found.mip_gap or 0.0)

    def _matrix(self, count: int) -> csr_array:
        data = [number for _, numbers, _ in self._rows for number in numbers]
        columns = [index for indices, *_ in self._rows for index in indices]
        rows = [row for row, (indices, *_) in enumerate(self._rows) for _ in indices]
        return csr_array((data, (rows, columns)), shape=(len(self._rows), count))
