"""Is every factorised layer worth having? Each is put back dense in the whole network, side by side with the plan.

Whole launches differ, so they are the unit. What one layer gains may be a hundredth of the network's time: those for
which that stays open are held against the plan again, on fresh samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtr, stdtrit

from ..runtime.latency import key_of
from .reporting import Report, silent
from .search import Draft, Search

WORTH = 0.01  # of the plan's time: a layer may cost no more than this, for sure
_ALPHA = 0.05  # of taking a layer back that pays, all of them together; and of keeping one that costs more than WORTH
_AT_ONCE = 8  # networks alive in one process beside the plan
_LAUNCHES, _TIMES = 4, 4  # in which a layer is held against the plan, and how often at most


@dataclass(frozen=True)
class InPlace:
    """Networks with one layer put back dense, by its name: their time / the plan's, as logarithms, one a launch."""

    put_back: Mapping[str, Sequence[float]]

    def ratio(self, name: str) -> float:
        """Time without the factors / time with them."""
        return math.exp(fmean(self.put_back[name]))

    def costs_at_most(self, name: str) -> float:
        """What having the factors costs, as a share of the plan's time: the upper end of a one-sided 95 % interval."""
        logs = self.put_back[name]
        return 1 - math.exp(fmean(logs) + float(stdtrit(len(logs) - 1, _ALPHA)) * _error(logs))

    def open(self) -> list[str]:
        """Layers that may cost more than they may."""
        return [name for name in self.put_back if self.costs_at_most(name) >= WORTH]

    def slower(self) -> list[str]:
        """Layers without which the network is faster, by one-sided tests of which none may err (Holm, Scandinavian
        Journal of Statistics 6, 1979); and those that showed no gain where it stayed open what they cost.
        """
        chance = {name: float(stdtr(len(logs) - 1, fmean(logs) / _error(logs))) for name, logs in self.put_back.items()}
        rejected = {name for name in self.open() if self.ratio(name) < 1}
        for index, name in enumerate(sorted(chance, key=lambda name: chance[name])):
            if chance[name] > _ALPHA / (len(chance) - index):
                break
            rejected.add(name)
        return [name for name in self.put_back if name in rejected]


def in_place(search: Search, draft: Draft, report: Report = silent) -> InPlace:
    """Every factorised layer of a draft against itself dense."""
    step, plan = "holding each layer against itself dense", search.sketch(draft)
    run_s = search.dense.reference_s * search.predicted(draft)
    found: dict[str, list[float]] = {name: [] for name, way in draft.ways.items() if not way.is_dense}
    undecided = list(found)
    for _ in range(_TIMES):
        for start in range(0, len(undecided), _AT_ONCE):
            report(step, len(found) - len(undecided) + start, len(found))
            sketches = {name: search.sketch(draft.without(name)) for name in undecided[start : start + _AT_ONCE]}
            timed = search.watch.timed(plan, list(sketches.values()), whole=True, launches=_LAUNCHES, run_s=run_s)
            for name, content in sketches.items():
                found[name] += map(math.log, timed[key_of(content)].launches)
        undecided = InPlace(found).open()
    report(step, len(found), len(found))
    return InPlace(found)


def _error(logs: Sequence[float]) -> float:
    """Standard error of the mean; never 0, as where a clock has steps."""
    return max(stdev(logs) / math.sqrt(len(logs)), 1e-9)
