"""Choose forms and ranks by what they take on a device: least damage within a share of the original's time.

Candidates are timed as layers, the choice is exact for what they say, and the whole network is timed before it counts:
where it takes more than it should, the aim is lowered and the choice made again. Then each factorised layer is held
against itself dense, in place; one that does not pay goes back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir
from scipy.special import ndtr

from ..errors import CheckFailed, InputError
from ..records import Comparison, PlanTiming
from ..runtime.latency import Stopwatch, Timed, key_of
from .candidates import DENSE, Way
from .damage import Candidate
from .forms import dense_macs, resolve_any
from .layers import Layer, layers_of
from .reporting import Report, silent
from .solve import Choice, Option, Problem
from .tile import spread
from .timing import Forecast, LayerTimes, sketch, useful_rewrites
from .widths import Widths

_ROUNDS = 8  # of choosing and timing the whole
_NEAR = 0.98  # of the budget: a plan above it uses what it may
_MOST_WITH_WIDTHS = 12  # candidates of a layer that are tried at every width
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


@dataclass(frozen=True)
class _Plan:
    """Channels kept by family, and a way for every layer that does not stay as it is."""

    widths: Mapping[str, int] = field(default_factory=dict)
    ways: Mapping[str, Way] = field(default_factory=dict)

    def without(self, name: str) -> _Plan:
        """The same with one layer dense."""
        way = replace(self.ways[name], form="dense", ranks=())
        return _Plan(self.widths, {**self.ways, name: way})


@dataclass
class Chosen:
    """The candidate of every layer, None where it is dense, the widths, and what was timed on the way."""

    candidates: Mapping[str, Candidate | None]
    widths: Mapping[str, int]
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
    widths: Widths | None = None,
    report: Report = silent,
) -> Chosen:
    """Raises CheckFailed, with the best there is, where no choice meets the budget: no model is written."""
    return _Search(model, original, candidates, widths, watch, report).within(budget, device)


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
        widths: Widths | None,
        watch: Stopwatch,
        report: Report,
    ) -> None:
        self._model, self._original, self._watch, self._report = model, original, watch, report
        self._candidates, self._widths = candidates, widths
        self._narrow: dict[tuple[tuple[str, int], ...], ir.Model] = {(): model}
        self._options = self._all_options()
        layers: list[Layer] = [layer for layer in layers_of(model) if layer.name in self._options]
        ways = {name: [one.what for one in found] for name, found in self._options.items()}
        self._times = LayerTimes(layers, ways, watch)
        self._times.measure(report=report)
        report("timing whole networks", 0, 3)
        self.rewrites = useful_rewrites(model, watch)
        report("timing whole networks", 1, 3)
        whole = {name: self._times.fastest(name) for name in self._options}
        self.dense, in_factors = self._timed(_Plan(), _Plan({}, whole))
        self._forecast = Forecast.fitted(self._times, in_factors.ratio / self.dense.ratio, whole)
        report("timing whole networks", 2, 3)
        self._fast = _plan(self._known(lambda: self._problem().least("time")))
        (self.fastest,) = self._timed(self._fast)
        if in_factors.ratio < self.fastest.ratio:
            self._fast, self.fastest = _Plan({}, whole), in_factors
        report("timing whole networks", 3, 3)

    def _all_options(self) -> dict[str, list[Option[Way]]]:
        """Every way of every layer at every width, with its damage."""
        found: dict[str, list[Option[Way]]] = {}
        for layer in layers_of(self._model):
            shapes = {(): layer.shape[:2]} if self._widths is None or layer.closed else self._widths.shapes(layer.name)
            candidates = _few(self._candidates.get(layer.name, ()), self._widths)
            if layer.closed or (not candidates and len(shapes) < 2):
                continue
            options = []
            for widths, channels in shapes.items():
                narrow = None if channels == layer.shape[:2] else channels
                options.append(Option(Way("dense", (), narrow), {"damage": 0.0}, dict(widths)))
                for one in candidates:
                    if _fits(one, layer, channels):
                        options.append(Option(Way(one.form, one.ranks, narrow), {"damage": one.damage}, dict(widths)))
            found[layer.name] = options
        return found

    def within(self, budget: Budget, device: str) -> Chosen:
        """The choice, held against itself."""
        share = budget.share
        if budget.seconds is not None:
            share = budget.seconds / self.dense.reference_s
        if share is not None and self.fastest.ratio > share:
            raise CheckFailed(self._infeasible(share))
        plan, found = self._search(share, budget.damage)
        plan, returned = self._without_slower(plan)
        if returned:
            (found,) = self._timed(plan)
        timing = PlanTiming(
            device=device,
            threads=self._watch.options.threads,
            budget=share,
            rewrites=self.rewrites,
            fastest=self.fastest.ratio,
            predicted=self.dense.ratio * self._forecast.total(plan.ways),
            screened=found.ratio,
        )
        chosen: dict[str, Candidate | None] = {}
        for name, candidates in self._candidates.items():
            way = plan.ways.get(name, DENSE)
            chosen[name] = next((one for one in candidates if (one.form, one.ranks) == (way.form, way.ranks)), None)
        ratios = {name: self._times.ratio(name, way) for name, way in plan.ways.items()}
        return Chosen(chosen, plan.widths, ratios, timing, returned)

    def _search(self, share: float | None, damage: float | None) -> tuple[_Plan, Timed]:
        """The choice whose network was timed within the share; or the fastest within the damage."""
        aim, best = share, None
        for number in range(_ROUNDS):
            self._report("choosing", number, _ROUNDS)
            plan = self._solved(aim, damage)
            (found,) = self._timed(plan)
            if share is None or aim is None:
                best = plan, found
                break
            if found.ratio <= share:
                if best is None or found.ratio > best[1].ratio:
                    best = plan, found
                if found.ratio >= _NEAR * share:
                    break
            aim *= share / found.ratio if found.ratio > share else math.sqrt(share / found.ratio)
        self._report("choosing", _ROUNDS, _ROUNDS)
        return (self._fast, self.fastest) if best is None else best

    def _solved(self, aim: float | None, damage: float | None) -> _Plan:
        def solve() -> Choice[Way]:
            problem = self._problem()
            if damage is not None:
                return problem.solve("time", {"damage": damage})
            assert aim is not None, "one of the two is asked for"
            least = problem.least("time").totals["time"]
            return problem.solve("damage", {"time": max(aim, least + 1e-6)})

        return _plan(self._known(solve))

    def _known(self, solve: Callable[[], Choice[Way]]) -> Choice[Way]:
        """A choice of which all was timed: what was only read off its neighbours is, and the choice made again."""
        while True:
            choice = solve()
            ways = {name: one.what for name, one in choice.options.items()}
            unknown = {name: [way] for name, way in ways.items() if not self._times.is_timed(name, way)}
            if not unknown:
                return choice
            self._times.measure(unknown)

    def _problem(self) -> Problem[Way]:
        layers = {}
        for name, options in self._options.items():
            share = self._forecast.shares[name] * self.dense.ratio
            layers[name] = [
                Option(one.what, {**one.costs, "time": -share * (1 - self._times.ratio(name, one.what))}, one.widths)
                for one in options
            ]
        groups: dict[str, Mapping[int, Mapping[str, float]]] = {}
        if self._widths is not None:
            groups = {
                name: {width: {"damage": damage} for width, damage in widths.items()}
                for name, widths in self._widths.damage.items()
            }
        return Problem(layers, groups, {"time": self.dense.ratio})

    def _sketch(self, plan: _Plan) -> bytes:
        narrower = {} if self._widths is None else self._widths.narrower(plan.widths)
        key = tuple(sorted(narrower.items()))
        if key not in self._narrow:
            assert self._widths is not None, "only they are narrower"
            copy = ir.from_proto(ir.to_proto(self._model))
            self._widths.apply(copy, narrower, 1, refit=False)
            self._narrow[key] = copy
        return sketch(self._narrow[key], plan.ways, self.rewrites)

    def _timed(self, *plans: _Plan) -> list[Timed]:
        sketches = [self._sketch(plan) for plan in plans]
        found = self._watch.timed(self._original, sketches, whole=True)
        return [found[key_of(one)] for one in sketches]

    def _without_slower(self, plan: _Plan) -> tuple[_Plan, dict[str, str]]:
        """Layers that are slower in place than dense go back, on fresh samples, by Holm's procedure."""
        factored = [name for name, way in plan.ways.items() if not way.is_dense]
        if not factored:
            return plan, {}
        now = self._sketch(plan)
        put_back = {name: self._sketch(plan.without(name)) for name in factored}
        self._report("holding each layer against itself dense", 0, 1)
        timed = self._watch.timed(now, list(put_back.values()), whole=True)
        self._report("holding each layer against itself dense", 1, 1)
        found = {name: timed[key_of(content)] for name, content in put_back.items()}
        returned = {
            name: f"slower in place than dense: without it the network takes {found[name].ratio:.3f} of the time"
            for name in _significantly_faster(found)
        }
        for name in returned:
            plan = plan.without(name)
        return plan, returned

    def _infeasible(self, share: float) -> str:
        ways = self._fast.ways
        slowest = sorted(ways, key=lambda name: -self._forecast.shares[name] * self._times.ratio(name, ways[name]))[:3]
        kept = ", ".join(f"{name} ({self._times.ratio(name, ways[name]):.2f} of dense)" for name in slowest)
        return (
            f"expected at most {share:.3f} of the original's time, found {self.fastest.ratio:.3f} "
            f"({1 / self.fastest.ratio:.2f}× as fast) with every layer in its fastest way, whatever the damage; the "
            f"layers that take most: {kept}; allow more time"
        )


def _plan(choice: Choice[Way]) -> _Plan:
    return _Plan(choice.widths, {name: one.what for name, one in choice.options.items() if one.what != DENSE})


def _few(candidates: Sequence[Candidate], widths: Widths | None) -> list[Candidate]:
    """All; or, where each comes at many widths, the least damaging of each number of MACs, and of those a dozen."""
    if widths is None or len(candidates) <= _MOST_WITH_WIDTHS:
        return list(candidates)
    kept: list[Candidate] = []
    for one in sorted(candidates, key=lambda one: (one.macs, one.damage)):
        while kept and kept[-1].damage >= one.damage and kept[-1].macs >= one.macs:
            kept.pop()
        if not kept or one.damage < kept[-1].damage:
            kept.append(one)
    return spread(kept, _MOST_WITH_WIDTHS)


def _fits(one: Candidate, layer: Layer, channels: tuple[int, int]) -> bool:
    """Whether a candidate still saves MACs when its layer has so many channels."""
    assert layer.pixels is not None, "closed layers have no candidates"
    shape = (*channels, *layer.shape[2:])
    form = resolve_any(one.form, shape)
    if any(rank > most for rank, most in zip(one.ranks, form.most(shape), strict=True)):
        return False
    return form.macs_of(form.shapes_at(shape, one.ranks), layer.pixels) < dense_macs(shape, layer.pixels)


def _significantly_faster(found: Mapping[str, Timed]) -> list[str]:
    """Whose ratio lies below 1, by one-sided tests of which none may err (Holm, Scand. J. Statist. 6, 1979)."""
    chance = {name: float(ndtr(math.log(one.ratio) / max(one.error, 1e-12))) for name, one in found.items()}
    rejected = []
    for index, name in enumerate(sorted(chance, key=lambda name: chance[name])):
        if chance[name] > _ALPHA / (len(chance) - index):
            break
        rejected.append(name)
    return rejected
