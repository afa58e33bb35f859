"""Ranks by measured time: which of a layer's ranks are really faster than dense, and what the layer can save.

Pure functions on the rows of a latency table (`rankfold latency-table show`). Layers go by name, forms by their own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from ..errors import InputError
from ..records import LayerTime

CLEARLY = 0.97  # of a time is really less: ratios of the table repeat to about 1 %


def useful_ranks(rows: Iterable[LayerTime], layer: str, form: str) -> list[int]:
    """The ranks at which the layer is faster than dense, ascending; of ranks that take the same time the largest.

    A rank that is no faster than a larger one only loses accuracy: time is a staircase, and these are its edges.
    """
    times = _times(rows, layer, form)
    found: list[int] = []
    for rank in sorted(times, reverse=True):
        if times[rank] < CLEARLY * (times[found[-1]] if found else 1.0):
            found.append(rank)
    return found[::-1]


def saving(rows: Iterable[LayerTime], layer: str, form: str) -> float:
    """The share of all layers' time that this one gives back at its fastest useful rank; 0 where there is none."""
    rows = list(rows)
    useful, times = useful_ranks(rows, layer, form), _times(rows, layer, form)
    share = next((row.share / len(row.layers) for row in rows if layer in row.layers), 0.0)
    return share * (1 - times[useful[0]]) if useful else 0.0


def strengths_by_time(rows: Iterable[LayerTime], forms: Mapping[str, str]) -> dict[str, float]:
    """For each layer (by name, with its form) a strength in proportion to the time it can save: 1 on average over the
    layers that can save any, 0 for the rest.

    Raises InputError where the table is of another model, or no layer can save anything.
    """
    rows = list(rows)
    if not any(name in row.layers for row in rows for name in forms):
        found = next((row.layers[0] for row in rows), "none")
        raise InputError(
            f"the latency table is of another model: it has layer '{found}', not '{next(iter(forms), '')}'"
        )
    savings = {name: saving(rows, name, form) for name, form in forms.items()}
    positive = [saved for saved in savings.values() if saved > 0]
    if not positive:
        kinds = " or ".join(sorted(set(forms.values())))
        raise InputError(f"in form {kinds} no layer of the latency table is faster than dense; choose another form")
    return {name: saved / fmean(positive) for name, saved in savings.items()}


def time_of(rows: Iterable[LayerTime], kept: Mapping[str, tuple[str, int | None]]) -> float:
    """The time of a table's layers as a share of their dense time, where each (by name) has a form and a rank; a layer
    that has None, or is not named, is dense. Dead channels do not count: the table has no times of narrower layers.
    """
    rows = list(rows)
    shares = {name: row.share / len(row.layers) for row in rows for name in row.layers}
    times = {name: _times(rows, name, form) for name, (form, _) in kept.items()}
    ratios = {name: times[name].get(rank, 1.0) for name, (_, rank) in kept.items() if rank is not None}
    return sum(share * ratios.get(name, 1.0) for name, share in shares.items()) / sum(shares.values())


def nearest_rank(useful: Sequence[int], rank: int, full: int) -> int | None:
    """The useful rank nearest to `rank`, the larger one half-way; None where the full rank, dense, is nearer still."""
    nearest = min([*useful, full], key=lambda one: (abs(one - rank), -one))
    return None if nearest == full else nearest


def next_rank(useful: Sequence[int], rank: int) -> int | None:
    """The smallest useful rank (they ascend) that is at least `rank`; None where there is none."""
    place = bisect_left(useful, rank)
    return useful[place] if place < len(useful) else None


def _times(rows: Iterable[LayerTime], layer: str, form: str) -> dict[int, float]:
    return {row.ranks[0]: row.ratio for row in rows if layer in row.layers and row.form == form and len(row.ranks) == 1}
