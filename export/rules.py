"""Harm against measured time: rankfold's choice beside the rules that others choose by, for the same network.

Three rules: least damage for the time (the latency table), least damage for the MACs (the same solver and candidates),
and one share of Σσ in every layer, form by form, as the paper has it. All get the same exact rewrites, and all are
timed in turns in the same run. With data a network is fitted to one half of it and judged on the other; without, harm
is the damage predicted from the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..records import Damage, RuleCurve, RulePoint
from .choose import plan_by_energy
from .damage import Candidate, Scored
from .decompose import singular_values
from .forms import resolve
from .layers import layers_of
from .reporting import Report, silent
from .search import Draft, Search, drafted

POINTS = 6  # of a curve, beside the dense network
_ENERGIES = (0.98, 0.95, 0.9, 0.8, 0.65, 0.5)
_FORMS = ("channel", "spatial")  # of the energy rule: the paper's, and the one with the most ranks

# what became of the outputs of a network with these candidates and widths
Judged = Callable[[Mapping[str, Candidate | None], Mapping[str, int]], Damage]


@dataclass(frozen=True)
class _Drawn:
    """A network on a curve, and its damage as it is predicted."""

    candidates: Mapping[str, Candidate | None]
    draft: Draft
    damage: float


def curves(
    search: Search,
    model: ir.Model,
    scored: Mapping[str, Scored],
    tile: int,
    judged: Judged | None,
    report: Report = silent,
) -> list[RuleCurve]:
    """One curve a rule, fastest last; all begin at the dense network, rewritten exactly."""
    drawn = {"latency": _by_time(search), "macs": _by_macs(search)}
    drawn |= {f"energy, {form}": _by_energy(model, form, scored, tile) for form in _FORMS}
    every = [one for listed in drawn.values() for one in listed]
    times = search.timed(Draft(), *(one.draft for one in every))
    dense, ratios = times[0].ratio, iter(times[1:])
    found, number = [], 0
    for rule, listed in drawn.items():
        points = [RulePoint(time=dense, layers=0, damage=0.0, drop=None if judged is None else 0.0)]
        for one in listed:
            report("curves", number, len(every))
            number += 1
            points.append(_point(one, next(ratios).ratio, judged))
        found.append(RuleCurve(rule=rule, points=points))
    report("curves", len(every), len(every))
    return found


def _point(one: _Drawn, time: float, judged: Judged | None) -> RulePoint:
    layers = sum(candidate is not None for candidate in one.candidates.values())
    if judged is None:
        return RulePoint(time=time, layers=layers, damage=one.damage)
    found = judged(one.candidates, one.draft.widths)
    drop = None if found.agreement is None else 1 - found.agreement
    if found.top1_before is not None and found.top1_after is not None:
        drop = found.top1_before - found.top1_after
    return RulePoint(time=time, layers=layers, damage=found.error, drop=drop)


def _by_time(search: Search) -> list[_Drawn]:
    """Least damage in so much time, at evenly spread times down to the fastest network."""
    fastest = search.predicted(search.least("time"))
    times = np.linspace(search.dense.ratio, fastest, POINTS + 1)[1:]
    return [_drawn(search, search.least_damage(float(time))) for time in times]


def _by_macs(search: Search) -> list[_Drawn]:
    """Least damage with so many MACs, the same candidates to choose from; nothing is timed for it."""
    problem = search.problem()
    most, least = (problem.solve(what, {}).totals["macs"] for what in ("damage", "macs"))
    limits = [max(float(limit), least * (1 + 1e-6)) for limit in np.linspace(most, least, POINTS + 1)[1:]]
    return [_drawn(search, drafted(problem.solve("damage", {"macs": limit}))) for limit in limits]


def _drawn(search: Search, draft: Draft) -> _Drawn:
    return _Drawn(search.candidates_of(draft), draft, search.damage(draft))


def _by_energy(model: ir.Model, form: str, scored: Mapping[str, Scored], tile: int) -> list[_Drawn]:
    return [drawn_by_energy(model, form, energy, scored, tile) for energy in _ENERGIES]


def drawn_by_energy(model: ir.Model, form: str, energy: float, scored: Mapping[str, Scored], tile: int) -> _Drawn:
    """The network with the ranks that hold one share of Σσ in every layer, where that saves MACs."""
    chosen: dict[str, Candidate | None] = {}
    layers = {layer.name: layer for layer in layers_of(model)}
    for name, decision in plan_by_energy(model, form=form, energy=energy, tile=tile).layers.items():
        if decision.form == "dense" or decision.macs is None or name not in scored:
            continue
        powers = np.square(singular_values(layers[name].kernel, resolve(decision.form, layers[name].shape)))
        loss = float(powers[decision.ranks[0] :].sum() / powers.sum())
        damage = scored[name].scale(loss)
        chosen[name] = Candidate(decision.form, tuple(decision.ranks), decision.macs, 0, loss, damage)
    return _Drawn(chosen, Draft.of(chosen), sum(one.damage for one in chosen.values() if one is not None))
