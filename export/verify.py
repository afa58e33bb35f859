"""Is every factorised layer worth having? Each is put back dense in the whole network, side by side with the plan.

What one layer gains may be a hundredth of the network's time, so those for which that is still open are held against
the plan again and again, on fresh samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy.special import ndtr, ndtri

from ..runtime.latency import Timed, key_of, pooled
from .reporting import Report, silent
from .search import Draft, Search

WORTH = 0.01  # of the plan's time: a layer may cost no more than this, for sure
_ALPHA = 0.05  # of taking a layer back that pays, all of them together; and of keeping one that costs more than WORTH
_AT_ONCE = 8  # networks alive in one process beside the plan
_TIMES = 5  # that a layer is held against the plan, at most


@dataclass(frozen=True)
class InPlace:
    """Networks with one layer put back dense, by its name: their time / the plan's."""

    put_back: Mapping[str, Timed]

    def costs_at_most(self, name: str) -> float:
        """What having the layer costs, as a share of the plan's time: the upper end of a one-sided 95 % interval."""
        return 1 - math.exp(self._log(name) + float(ndtri(_ALPHA)) * self.put_back[name].error)

    def open(self) -> list[str]:
        """Layers that may cost more than they may."""
        return [name for name in self.put_back if self.costs_at_most(name) >= WORTH]

    def slower(self) -> list[str]:
        """Layers without which the network is faster, by one-sided tests of which none may err (Holm, Scandinavian
        Journal of Statistics 6, 1979); and those that showed no gain where it stayed open what they cost.
        """
        chance = {name: float(ndtr(self._log(name) / max(one.error, 1e-12))) for name, one in self.put_back.items()}
        rejected = {name for name in self.open() if self._log(name) < 0}
        for index, name in enumerate(sorted(chance, key=lambda name: chance[name])):
            if chance[name] > _ALPHA / (len(chance) - index):
                break
            rejected.add(name)
        return [name for name in self.put_back if name in rejected]

    def _log(self, name: str) -> float:
        return math.log(self.put_back[name].ratio)


def in_place(search: Search, draft: Draft, report: Report = silent) -> InPlace:
    """Every factorised layer of a draft against itself dense."""
    step, plan = "holding each layer against itself dense", search.sketch(draft)
    undecided = [name for name, way in draft.ways.items() if not way.is_dense]
    total, found = len(undecided), dict[str, Timed]()
    for _ in range(_TIMES):
        for start in range(0, len(undecided), _AT_ONCE):
            report(step, total - len(undecided) + start, total)
            names = undecided[start : start + _AT_ONCE]
            sketches = [search.sketch(draft.without(name)) for name in names]
            timed = search.watch.timed(plan, sketches, whole=True)
            for name, content in zip(names, sketches, strict=True):
                now = timed[key_of(content)]
                found[name] = pooled(found[name], now) if name in found else now
        undecided = InPlace(found).open()
    report(step, total, total)
    return InPlace(found)
