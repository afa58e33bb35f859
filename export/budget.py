"""Choose forms and ranks by what they take on a device: least damage within a share of the original's time.

Candidates are timed as layers, the choice is exact for what they say, and the whole network is timed before it counts:
where it takes more than it should, the aim is lowered and the choice made again. Then each factorised layer is held
against itself dense, in place; one that does not pay goes back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
from scipy.special import ndtr

from ..errors import CheckFailed, InputError
from ..records import Comparison, PlanTiming
from ..runtime.latency import Stopwatch, Timed, key_of
from .candidates import DENSE, Way
from .damage import Candidate
from .layers import Layer, layers_of
from .reporting import Report, silent
from .solve import Choice, Option, Problem
from .timing import Forecast, LayerTimes, sketch, useful_rewrites

_ROUNDS = 8  # of choosing and timing the whole
_NEAR = 0.98  # of the budget: a plan above it uses what it may
_OVER = 1.05  # launch pairs and turns in one process may differ by as much
_ALPHA = 0.05  # of taking a layer back that pays, all of them together (Holm 1979)


@dataclass(frozen=True)
class Budget:
    """What a plan may take or do, one of: `share` of the original's time, `seconds`, `damage` (squared error of the
    outputs over their variance, predicted).
    """

    share: float | None = None
    seconds: float | None = None
    damage: float | None = None

    def __post_init__(self) -> None:
        if sum(one is not None for one in (self.share, self.seconds, self.damage)) != 1:
            raise InputError("give one of --budget, --latency and --damage")
        if self.share is not None and not 0 < self.share <= 1:
            raise InputError(f"--budget: expected a share of the time in (0, 1], found {self.share}")
        for name, value in (("--latency", self.seconds), ("--damage", self.damage)):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name}: expected a number above 0, found {value}")


@dataclass
class Chosen:
    """The way of every layer, its candidate where it is not dense, and what was timed on the way."""

    ways: Mapping[str, Candidate | None]
    ratios: Mapping[str, float]
    timing: PlanTiming
    returned: Mapping[str, str] = field(default_factory=dict)


def choose(
    model: ir.Model,
    original: bytes,
    candidates: Mapping[str, Sequence[Candidate]],
    budget: Budget,
    watch: Stopwatch,
    device: str,
    report: Report = silent,
) -> Chosen:
    """Raises CheckFailed, with the best there is, where no choice meets the budget: no model is written."""
    return _Search(model, original, candidates, watch, report).within(budget, device)


def judged(timing: PlanTiming, found: Comparison) -> PlanTiming:
    """With the launch pairs of the two files, and a verdict. Raises CheckFailed where they are over the budget."""
    share, low, high = 1 / found.ratio, 1 / found.high, 1 / found.low
    said = (
        f"{found.ratio:.2f}× as fast ({found.low:.2f} to {found.high:.2f}) on {timing.device} with {timing.threads} "
        f"thread{'s' if timing.threads > 1 else ''}, predicted {1 / timing.predicted:.2f}×"
    )
    if timing.budget is not None and low > _OVER * timing.budget:
        raise CheckFailed(
            f"expected at most {timing.budget:.3f} of the original's time, found {share:.3f} [{low:.3f}, {high:.3f}] "
            "in launch pairs; ask for a little less, or measure on a quieter machine"
        )
    if high >= 1:
        said = f"no gain on this device: {said}"
    return timing.model_copy(update={"measured": share, "low": low, "high": high, "verdict": said})


class _Search:
    """Candidates, what the table says of them, and what whole networks took, each a share of the original's time."""

    def __init__(
        self,
        model: ir.Model,
        original: bytes,
        candidates: Mapping[str, Sequence[Candidate]],
        watch: Stopwatch,
        report: Report,
    ) -> None:
        self._model, self._original, self._watch, self._report = model, original, watch, report
        self._candidates = {
            name: {Way(one.form, one.ranks): one for one in found} for name, found in candidates.items() if found
        }
        layers: list[Layer] = [layer for layer in layers_of(model) if layer.name in self._candidates]
        self._times = LayerTimes(layers, {name: list(ways) for name, ways in self._candidates.items()}, watch)
        self._times.measure(report=report)
        report("timing whole networks", 0, 3)
        self.rewrites = useful_rewrites(model, watch)
        report("timing whole networks", 1, 3)
        self._fast = {name: self._times.fastest(name) for name in self._candidates}
        self.dense, self.fastest = self._timed({}, self._fast)
        report("timing whole networks", 3, 3)
        self._forecast = Forecast.fitted(self._times, self.fastest.ratio / self.dense.ratio, self._fast)

    def within(self, budget: Budget, device: str) -> Chosen:
        share = budget.share
        if budget.seconds is not None:
            share = budget.seconds / self.dense.reference_s
        if share is not None and self.fastest.ratio > share:
            raise CheckFailed(self._infeasible(share))
        ways, found = self._search(share, budget.damage)
        ways, returned = self._without_slower(ways)
        if returned:
            (found,) = self._timed(ways)
        timing = PlanTiming(
            device=device,
            threads=self._watch.options.threads,
            budget=share,
            rewrites=self.rewrites,
            fastest=self.fastest.ratio,
            predicted=self._predicted(ways),
            screened=found.ratio,
        )
        chosen = {name: self._candidates[name].get(ways.get(name, DENSE)) for name in self._candidates}
        ratios = {name: self._times.ratio(name, way) for name, way in ways.items() if way != DENSE}
        return Chosen(chosen, ratios, timing, returned)

    def _search(self, share: float | None, damage: float | None) -> tuple[dict[str, Way], Timed]:
        """The choice whose network was timed within the share; or the fastest within the damage."""
        aim, best = share, None
        for number in range(_ROUNDS):
            self._report("choosing", number, _ROUNDS)
            ways = self._solved(aim, damage)
            (found,) = self._timed(ways)
            if share is None or aim is None:
                best = ways, found
                break
            if found.ratio <= share:
                if best is None or found.ratio > best[1].ratio:
                    best = ways, found
                if found.ratio >= _NEAR * share:
                    break
            aim *= share / found.ratio if found.ratio > share else math.sqrt(share / found.ratio)
        self._report("choosing", _ROUNDS, _ROUNDS)
        if best is None:
            best = self._fast, self.fastest
        return best

    def _solved(self, aim: float | None, damage: float | None) -> dict[str, Way]:
        """The choice for what is known; what it takes that was only read off its neighbours is timed, and it is made
        again.
        """
        while True:
            problem = self._problem()
            if damage is not None:
                choice = problem.solve("time", {"damage": damage})
            else:
                assert aim is not None, "one of the two is asked for"
                least = problem.least("time").totals["time"]
                choice = problem.solve("damage", {"time": max(aim, least * (1 + 1e-6))})
            ways = _ways(choice)
            unknown = {name: [way] for name, way in ways.items() if not self._times.is_timed(name, way)}
            if not unknown:
                return ways
            self._times.measure(unknown)

    def _problem(self) -> Problem[Way]:
        layers = {}
        for name, candidates in self._candidates.items():
            share = self._forecast.shares[name] * self.dense.ratio
            options = [Option(DENSE, {"time": 0.0, "damage": 0.0})]
            for way, one in candidates.items():
                saved = share * (1 - self._times.ratio(name, way))
                options.append(Option(way, {"time": -saved, "damage": one.damage}))
            layers[name] = options
        return Problem(layers, base={"time": self.dense.ratio})

    def _predicted(self, ways: Mapping[str, Way]) -> float:
        return self.dense.ratio * self._forecast.total(ways)

    def _timed(self, *networks: Mapping[str, Way]) -> list[Timed]:
        sketches = [sketch(self._model, ways, self.rewrites) for ways in networks]
        found = self._watch.timed(self._original, sketches)
        return [found[key_of(one)] for one in sketches]

    def _without_slower(self, ways: dict[str, Way]) -> tuple[dict[str, Way], dict[str, str]]:
        """Layers that are slower in place than dense go back, on fresh samples, by Holm's procedure."""
        factored = [name for name, way in ways.items() if way != DENSE]
        if not factored:
            return ways, {}
        now = sketch(self._model, ways, self.rewrites)
        put_back = {name: sketch(self._model, {**ways, name: DENSE}, self.rewrites) for name in factored}
        self._report("holding each layer against itself dense", 0, 1)
        timed = self._watch.timed(now, list(put_back.values()))
        self._report("holding each layer against itself dense", 1, 1)
        found = {name: timed[key_of(content)] for name, content in put_back.items()}
        returned = {
            name: f"slower in place than dense: without it the network takes {found[name].ratio:.3f} of the time"
            for name in _significantly_faster(found)
        }
        return {name: way for name, way in ways.items() if name not in returned}, returned

    def _infeasible(self, share: float) -> str:
        slowest = sorted(self._fast, key=lambda name: -self._forecast.shares[name])[:3]
        kept = ", ".join(f"{name} ({self._times.ratio(name, self._fast[name]):.2f} of dense)" for name in slowest)
        return (
            f"expected at most {share:.3f} of the original's time, found {self.fastest.ratio:.3f} "
            f"({1 / self.fastest.ratio:.2f}× as fast) with every layer in its fastest way, whatever the damage; the "
            f"layers that take most: {kept}; allow more time"
        )


def _ways(choice: Choice[Way]) -> dict[str, Way]:
    return {name: one.what for name, one in choice.options.items() if one.what != DENSE}


def _significantly_faster(found: Mapping[str, Timed]) -> list[str]:
    """Whose ratio lies below 1, by one-sided tests of which none may err (Holm, Scand. J. Statist. 6, 1979)."""
    chance = {name: float(ndtr(math.log(one.ratio) / max(one.error, 1e-12))) for name, one in found.items()}
    rejected = []
    for index, name in enumerate(sorted(chance, key=lambda name: chance[name])):
        if chance[name] > _ALPHA / (len(chance) - index):
            break
        rejected.append(name)
    return rejected
