"""Who learns on, and who is chosen: rules that look at validation accuracy and time alone, the same for all tools.

bands      by a short contest, a network's share of the dense one's time. A tool's finalist in each band has the best
           validation accuracy at 0 epochs, in whole points; of several with as many, the one with the most MACs. There
           is one band where nothing is scored, and in a quick run, which has a part of an epoch and no more
1 epoch    every finalist, with distillation; a tool's best one from labels alone, too: the fastest that is within NEAR
           of the dense network's validation accuracy, else the most accurate
5 epochs   a tool's best one, by whichever of the two did better, and its others that are then within REACH of the dense
           network: the eight that were trained first gained at most 2.1 points from one epoch to five
between    of each tool MORE settings more, for 5 epochs at once: faster than the fastest network of all that loses at
           most DROP so far, slower than what of this tool has learned and lost more; the most accurate at 0 epochs
int8       the dense network by each setting of ONNX Runtime's tool; by the best of these then each tool's best network,
           its fastest that loses at most DROP, and its most accurate one. Rankfold's by its own `quantize --timed`:
           layers that are slower so stay float
chosen     in each class, fp32 and int8, the fastest that loses at most DROP of validation accuracy; of several with
           the same shapes, and so the same time, the most accurate
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from ...records import DistillSpec, PeerRow
from .own import DENSE, OURS, RANKFOLD

BANDS, ONE_BAND = ((0.0, 0.5), (0.5, 0.7), (0.7, 0.92)), ((0.0, 0.95),)
EPOCHS, QUICK_EPOCH = (1.0, 5.0), 0.25
WEIGHTS = (DistillSpec().weight, 0.0)
NEAR, DROP, REACH = 0.01, 0.005, 0.03
MORE = 2
Key = TypeVar("Key")
Rows = Mapping[Key, PeerRow]


def finalists(rows: Rows[Key], bands: Sequence[tuple[float, float]]) -> list[Key]:
    """Of one tool's points at 0 epochs, at most one a band; the most accurate where none is faster."""
    there = {key: row for key, row in rows.items() if row.failed is None and row.roughly is not None}
    found = [
        max(inside, key=lambda key: _standing(there[key]))
        for low, high in bands
        if (inside := [key for key, row in there.items() if low < (row.roughly or 0.0) <= high])
    ]
    return found or ([max(there, key=lambda key: _standing(there[key]))] if there else [])


def _standing(row: PeerRow) -> tuple[int, int]:
    return round(100 * (row.validation_accuracy or 0.0)), row.macs or 0


def best(rows: Rows[Key], dense: float, lost: float = NEAR) -> Key | None:
    """Of one tool's networks that have learned: the fastest that lost so little, else the most accurate."""
    there = {key: row for key, row in rows.items() if row.validation_accuracy is not None}
    near = [key for key, row in there.items() if _is_near(row, dense, lost)]
    if near:
        return min(near, key=lambda key: (there[key].roughly or 1.0, -_accuracy(there[key])))
    return max(there, key=lambda key: _accuracy(there[key]), default=None)


def going_on(rows: Rows[Key], dense: float) -> list[Key]:
    """Of one tool's networks that have learned: who learns longer, each setting as it learned better."""
    settings: dict[str, Key] = {}
    for key, row in rows.items():
        known = settings.get(row.setting)
        if row.validation_accuracy is not None and (known is None or _accuracy(row) > _accuracy(rows[known])):
            settings[row.setting] = key
    first = best(rows, dense)
    return [key for key in settings.values() if key == first or _is_near(rows[key], dense, REACH)]


def holding(rows: Iterable[PeerRow], dense: float) -> float:
    """What the fastest network takes that loses at most DROP, as a share of the dense one's time by a short contest."""
    near = (row for row in rows if _is_near(row, dense, DROP))
    return min((row.roughly for row in near if row.roughly is not None), default=1.0)


def between(grid: Rows[Key], learned: Iterable[PeerRow], limit: float) -> list[Key]:
    """Of one tool's points at 0 epochs: who learns as well, for a network faster than `limit`."""
    tried = list(learned)
    floor = max((row.roughly for row in tried if row.roughly is not None and row.roughly < limit), default=0.0)
    shapes = {row.macs for row in tried}
    found: dict[int | None, Key] = {}  # by MACs: several settings may come to the same widths
    for key in sorted(grid, key=lambda key: _standing(grid[key]), reverse=True):
        row = grid[key]
        if row.failed is None and floor < (row.roughly or 0.0) < limit and row.macs not in shapes:
            found.setdefault(row.macs, key)
    return list(found.values())[:MORE]


def chosen(rows: Iterable[PeerRow], dense: PeerRow) -> dict[tuple[str, str], PeerRow | None]:
    """By ("rankfold" or "peer", class): the fastest that loses little enough; None where none does."""
    near = within(rows, dense)
    return {
        (side, kind): fastest(row for row in near if row.precision == kind and (row.tool in OURS) == (side == RANKFOLD))
        for kind in ("fp32", "int8")
        for side in (RANKFOLD, "peer")
    }


def within(rows: Iterable[PeerRow], dense: PeerRow) -> list[PeerRow]:
    """Those that were timed and lose at most DROP of validation accuracy."""
    whole = _accuracy(dense)
    return [row for row in rows if row.time is not None and row.tool != DENSE and _is_near(row, whole, DROP)]


def fastest(rows: Iterable[PeerRow]) -> PeerRow | None:
    """Of timed rows; of several as fast the most accurate."""
    return max(
        rows, key=lambda row: (row.time.speedup if row.time else 0.0, _accuracy(row), row.config_hash), default=None
    )


def _is_near(row: PeerRow, dense: float, lost: float) -> bool:
    return _accuracy(row) >= dense - lost


def _accuracy(row: PeerRow) -> float:
    return row.validation_accuracy or 0.0
