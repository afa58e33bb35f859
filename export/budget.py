"""Choose forms, ranks and widths by what they take on a device, within limits of time and of harm.

The choice is exact for what single layers say, and the whole network is timed before it counts: where it takes more
than it should, the aim is lowered and the choice made again. Where a metric limits the harm, networks are built and
judged, and the damage that may be predicted is found by halving. At the end each factorised layer is held against
itself dense, in place; one that does not pay goes back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..errors import CheckFailed, Infeasible, InputError
from ..records import Comparison, CostKind, Drop, PlanTiming
from ..runtime.latency import Timed
from .damage import Candidate
from .reporting import Report, silent
from .search import Draft, Search
from .verify import in_place

Goal = Literal["latency", "size", "peak-memory"]
_RESOURCE: Mapping[Goal, str] = {"latency": "time", "size": "bytes", "peak-memory": "memory"}
_ROUNDS = 8  # of choosing and timing the whole
_NEAR = 0.98  # of the budget: a plan above it uses what it may
_OVER = 1.05  # launch pairs and turns in one process may differ by as much
_FIRST_DAMAGE, _STEP, _FINE = 0.02, 4.0, 1.15  # of the outputs' variance: where halving begins, widens, and ends
_TRIALS = 9  # networks that are built and judged


@dataclass(frozen=True)
class Budget:
    """What a plan may take and do.

    Time: `share` of the original's, or `seconds`. Harm: `damage` (squared error of the outputs over their variance,
    predicted), or `drop` (of the metric, a share of the inputs). With a limit of time alone the damage is least; with
    one of harm `objective` is least, within both.
    """

    share: float | None = None
    seconds: float | None = None
    damage: float | None = None
    drop: float | None = None
    objective: Goal = "latency"

    def __post_init__(self) -> None:
        timed, harmed = (self.share, self.seconds), (self.damage, self.drop)
        if timed.count(None) < 1 or harmed.count(None) < 1 or (*timed, *harmed).count(None) == 4:
            raise InputError("give --budget or --latency, --damage or --max-drop, or one of each")
        if self.share is not None and not 0 < self.share <= 1:
            raise InputError(f"--budget: expected a share of the time in (0, 1], found {self.share}")
        if self.drop is not None and not 0 < self.drop < 1:
            raise InputError(f"--max-drop: expected points above 0 and below 100, found {100 * self.drop:g}")
        for name, value in (("--latency", self.seconds), ("--damage", self.damage)):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name}: expected a number above 0, found {value}")
        if self.objective != "latency" and not self.limits_harm:
            raise InputError(f"--objective {self.objective}: say what it may cost, with --max-drop or --damage")

    @property
    def limits_harm(self) -> bool:
        """Whether damage or a drop is limited."""
        return self.damage is not None or self.drop is not None


@dataclass
class Chosen:
    """The candidate of every layer, None where it is dense, the widths, and what was timed on the way."""

    candidates: Mapping[str, Candidate | None]
    widths: Mapping[str, int]
    ratios: Mapping[str, float]
    timing: PlanTiming
    returned: Mapping[str, str] = field(default_factory=dict)


# builds candidates at some widths, and judges what became of the metric
DropOf = Callable[[Mapping[str, Candidate | None], Mapping[str, int]], Drop]


def choose(
    search: Search, budget: Budget, device: str, report: Report = silent, drop_of: DropOf | None = None
) -> Chosen:
    """Raises CheckFailed, with the best there is, where no choice meets the budget: no model is written."""
    return _Chooser(search, budget, report, drop_of).chosen(device)


def judged(timing: PlanTiming, found: Comparison, budget: Budget, run_s: float) -> PlanTiming:
    """With the launch pairs of the two files, in which a run of the small one takes `run_s`, and a verdict.

    Raises CheckFailed where that is over the budget.
    """
    share, low, high = 1 / found.ratio, 1 / found.high, 1 / found.low
    said = (
        f"{found.ratio:.2f}× as fast ({found.low:.2f} to {found.high:.2f}) on {timing.device} with {timing.threads} "
        f"thread{'s' if timing.threads > 1 else ''}, predicted {1 / timing.predicted:.2f}×"
    )
    if timing.precision == "int8":
        said += ", both files in int8"
    if timing.drop is not None:
        said += f"; {timing.drop.said}"
    if timing.budget is not None and low > _OVER * timing.budget:
        raise CheckFailed(
            f"expected at most {timing.budget:.3f} of the original's time, found {share:.3f} [{low:.3f}, {high:.3f}] "
            "in launch pairs; ask for a little less, or measure on a quieter machine"
        )
    if budget.seconds is not None and run_s > _OVER * budget.seconds:
        raise CheckFailed(
            f"expected a run of at most {1e3 * budget.seconds:.3g} ms, found {1e3 * run_s:.3g} ms in launch pairs, "
            f"{share:.3f} of the original's; ask for a little less, or measure on a quieter machine"
        )
    if timing.budget is not None and low > timing.budget:
        said += f"; {share / timing.budget - 1:.1%} more time than was wished for"
    if high >= 1:
        said = f"no gain on this device: {said}"
    return timing.model_copy(update={"measured": share, "low": low, "high": high, "verdict": said})


def counted(timing: PlanTiming, share: float) -> PlanTiming:
    """With what the small file takes of the original's instructions, and a verdict, which is of a proxy.

    Raises CheckFailed where that is over the budget.
    """
    if timing.budget is not None and share > _OVER * timing.budget:
        raise CheckFailed(
            f"expected at most {timing.budget:.3f} of the original's instructions, found {share:.3f}; "
            "ask for a little less"
        )
    said = (
        f"{share:.3f} of the original's instructions on {timing.device}, predicted {timing.predicted:.3f}: a proxy, "
        "how fast it is only a board can say"
    )
    if timing.drop is not None:
        said += f"; {timing.drop.said}"
    return timing.model_copy(update={"measured": share, "verdict": said})


class _Chooser:
    """One budget, and how far its search is."""

    def __init__(self, search: Search, budget: Budget, report: Report, drop_of: DropOf | None) -> None:
        self._search, self._budget, self._report, self._drop_of = search, budget, report, drop_of
        self._cost: CostKind = search.watch.cost
        self._share = budget.share
        if budget.seconds is not None:
            if self._cost != "time":
                raise InputError("--latency: no time is known where instructions are counted; give --budget")
            self._share = budget.seconds / search.dense.reference_s
        self._drops: list[tuple[Draft, Drop]] = []  # a draft holds mappings: no key

    def chosen(self, device: str) -> Chosen:
        """The choice, held against itself."""
        search, drop = self._search, None
        if self._share is not None and search.fastest.ratio > self._share:
            raise CheckFailed(self._infeasible(self._share))
        if self._budget.drop is not None:
            draft, found, drop = self._within_drop(self._budget.drop)
        else:
            draft, found = self._within_time(self._budget.damage)
        returned: dict[str, str] = {}
        if self._budget.objective == "latency":
            held = in_place(search, draft, self._report)
            for name in held.slower():
                without = held.ratio(name)
                returned[name] = (
                    f"slower in place than dense: without it the network takes {without:.3f} of the {self._cost}"
                )
                draft = draft.without(name)
        if returned:
            (found,) = search.timed(draft)
            drop = drop and self._judged(draft)
        timing = PlanTiming(
            device=device,
            threads=search.watch.options.threads,
            cost=self._cost,
            budget=self._share,
            rewrites=search.rewrites,
            fastest=search.fastest.ratio,
            predicted=search.predicted(draft),
            screened=found.ratio,
            drop=drop,
        )
        ratios = {name: search.ratio(name, way) for name, way in draft.ways.items()}
        return Chosen(search.candidates_of(draft), draft.widths, ratios, timing, returned)

    def _within_time(self, damage: float | None) -> tuple[Draft, Timed]:
        """The draft whose network was timed within the share there is; without one, the first."""
        search, share = self._search, self._share
        if share is None:
            draft = self._solved(None, damage)
            return draft, search.timed(draft)[0]
        aim, best, least = share, None, math.inf
        for number in range(_ROUNDS):
            self._report("choosing", number, _ROUNDS)
            draft = self._solved(aim, damage)
            (found,) = search.timed(draft)
            least = min(least, found.ratio)
            if found.ratio <= share:
                if best is None or found.ratio > best[1].ratio:
                    best = draft, found
                if found.ratio >= _NEAR * share or damage is not None:
                    break
            aim *= share / found.ratio if found.ratio > share else math.sqrt(share / found.ratio)
        self._report("choosing", _ROUNDS, _ROUNDS)
        if best is None and damage is not None:
            raise Infeasible(
                f"expected at most {share:.3f} of the original's {self._cost}, found {least:.3f} within the damage; "
                "allow more of either"
            )
        return (search.fast, search.fastest) if best is None else best

    def _solved(self, aim: float | None, damage: float | None) -> Draft:
        if damage is None:
            assert aim is not None, "one of the two is limited"
            return self._search.least_damage(aim)
        limits = {"damage": damage} if aim is None else {"damage": damage, "time": aim}
        return self._search.least(_RESOURCE[self._budget.objective], limits)

    def _within_drop(self, most: float) -> tuple[Draft, Timed, Drop | None]:
        """The last draft, by rising damage, that was built and judged to lose no more of the metric.

        Where none does, everything stays dense and nothing is lost; CheckFailed where that takes too long.
        """
        best: tuple[Draft, Timed, Drop | None] | None = None
        refused: Infeasible | None = None
        fitting, failing, damage = 0.0, math.inf, _FIRST_DAMAGE
        for number in range(_TRIALS):
            self._report("building and judging", number, _TRIALS)
            try:
                draft, found = self._within_time(damage)
            except Infeasible as error:  # so little damage leaves too much time
                refused, fitting = error, damage
            else:
                drop = self._judged(draft)
                if drop.value > most:
                    failing = damage
                elif best is not None and draft == best[0] and failing == math.inf:
                    break  # no choice damages more
                else:
                    best, fitting = (draft, found, drop), damage
            if failing < fitting * _FINE:
                break
            damage = damage * _STEP if failing == math.inf else math.sqrt(max(fitting, failing / _STEP**2) * failing)
        self._report("building and judging", _TRIALS, _TRIALS)
        if best is None and self._share is not None and self._search.dense.ratio > self._share:
            raise refused or CheckFailed(
                f"expected {self._share:.3f} of the original's {self._cost} within {100 * most:g} points, "
                "found no network that keeps both; allow more of either"
            )
        return best or (Draft(), self._search.dense, None)

    def _judged(self, draft: Draft) -> Drop:
        assert self._drop_of is not None, "a drop is judged on data"
        known = next((drop for one, drop in self._drops if one == draft), None)
        if known is None:
            known = self._drop_of(self._search.candidates_of(draft), draft.widths)
            self._drops.append((draft, known))
        return known

    def _infeasible(self, share: float) -> str:
        search = self._search
        remedy = "allow more time" if search.narrows else "allow more time, or let channels go with --widths"
        return (
            f"expected at most {share:.3f} of the original's {self._cost}, found {search.fastest.ratio:.3f} "
            f"({1 / search.fastest.ratio:.2f}× as fast) with every layer in its fastest way, whatever the damage; the "
            f"layers that take most: {', '.join(search.slowest(search.fast, 3))}; {remedy}"
        )
