"""A sweep's own figures: accuracy against size, how it answers to pairs of keys, ranks over epochs.  Report → Figure"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import fmean

from markupsafe import Markup

from ...records import EpochRow, Setting, Sweep, SweepPoint, TrainRecord
from .assemble import Report
from .curves import Curve, curves, rank_curves
from .plots import Figure, frame, plot_area
from .svg import WIDTH, Box, dot, element, label, line, place_labels, scale, shorten, svg
from .units import DASH, one_line

_CELL, _LEFT, _TOP, _FOOT = 46.0, 64.0, 30.0, 40.0  # of a heat map: a row's height, room for the values of the keys
_FAINT, _FULL = 0.06, 0.6  # opacity of the least and the most accurate cell: the text on it stays legible


def sweep_figures(report: Report) -> list[Figure]:
    """Accuracy against MACs and parameters, and a map for each pair of keys that vary; none without a sweep."""
    sweep = report.sweep
    if sweep is None:
        return []
    return [*_against_size(sweep), *sensitivity(sweep)]


def sweep_ranks(report: Report) -> list[Figure]:
    """Over the epochs: the mean share of full rank of each run, then every layer's of each run."""
    if report.sweep is None:
        return []
    trained: dict[str, TrainRecord] = {}
    runs = {point.name: point.run for point in report.sweep.points}
    for row in report.rows:
        if row.side.train is not None and row.name in runs:
            trained.setdefault(runs[row.name], row.side.train)
    lines: list[Curve] = [
        (
            one_line(run),
            f"layer l{index % 4}",
            [(e.epoch, _mean_share(e)) for e in record.epochs if e.layers],
        )
        for index, (run, record) in enumerate(trained.items())
    ]
    whole = curves("Ranks of all runs", lines, "mean rank / % of full", "The mean over layers, as exported.", top=100.0)
    return [figure for figure in (whole, *(rank_curves(run, record) for run, record in trained.items())) if figure]


def failures(report: Report) -> list[str]:
    """A sentence for each point that came to no network."""
    points = report.sweep.points if report.sweep else []
    return [f"{one_line(p.name)}: {one_line(p.failure)}" for p in points if p.failure is not None]


def _mean_share(row: EpochRow) -> float:
    return 100 * fmean(layer.rank / max(layer.full_rank, 1) for layer in row.layers)


# --- accuracy against size ----------------------------------------------------------------------------------


def _against_size(sweep: Sweep) -> Iterator[Figure]:
    for what, dense, sizes in (
        ("MACs", sweep.dense_macs, [point.macs for point in sweep.points]),
        ("parameters", sweep.dense_parameters, [point.parameters for point in sweep.points]),
    ):
        points = [
            (point, 100 * size / dense, point.validation_accuracy * 100)
            for point, size in zip(sweep.points, sizes, strict=True)
            if dense and size and point.validation_accuracy is not None
        ]
        if points:
            yield _scatter(f"Accuracy against {what}", f"{what} / % of dense", points)


def _scatter(title: str, x_name: str, points: Sequence[tuple[SweepPoint, float, float]]) -> Figure:
    across, up, area = plot_area()
    x = scale([size for _, size, _ in points], *across, pad=0.08)
    bars = [(100 * (p.validation_low or 0), 100 * (p.validation_high or 0)) for p, _, _ in points]
    y = scale([end for bar in bars for end in bar], *up)
    marks = frame(x, y, x_name, "validation accuracy / %")
    best = front([(size, accuracy) for _, size, accuracy in points])
    told = [f"{one_line(p.name)}: {accuracy:.1f} % at {size:.1f} %" for p, size, accuracy in points]
    names, boxes = [], []
    for index, ((point, size, accuracy), (low, high)) in enumerate(zip(points, bars, strict=True)):
        role = "headline" if index in best else "other"
        marks.append(line(x(size), y(low), x(size), y(high), f"bar {role}"))
        marks.append(dot(x(size), y(accuracy), f"dot {role}", told[index]))
        boxes.append(Box(x(size) - 1, y(high), x(size) + 1, y(low)))
        if index in best:
            names.append((x(size), y(accuracy), shorten(one_line(point.name)), "name headline"))
    marks += place_labels(names, area, boxes)
    caption = "Named: those that no smaller network equals. Bars: 95 % intervals of the accuracy."
    return Figure(title, svg(marks, f"{title}. " + "; ".join(told)), caption)


def front(places: Sequence[tuple[float, float]]) -> set[int]:
    """Which of (size, accuracy) are more accurate than all that are as small or smaller."""
    best, found = -1.0, set()
    for index in sorted(range(len(places)), key=lambda i: (places[i][0], -places[i][1])):
        if places[index][1] > best:
            best = places[index][1]
            found.add(index)
    return found


# --- how it answers to the keys -----------------------------------------------------------------------------


def sensitivity(sweep: Sweep) -> Iterator[Figure]:
    """A map for each pair of keys that vary, or of the one that does."""
    varied = [key for key, values in sweep.grid.items() if len(values) > 1]
    for one, other in combinations(varied, 2) if len(varied) > 1 else [(key, None) for key in varied]:
        yield _map(sweep, one, other, [key for key in varied if key not in (one, other)])


def _map(sweep: Sweep, one: str, other: str | None, rest: Sequence[str]) -> Figure:
    """Columns are the values of `one`, rows those of `other`; each cell the mean over the rest of the grid."""
    cells: dict[tuple[Setting | None, Setting | None], list[SweepPoint]] = defaultdict(list)
    for point in sweep.points:
        cells[point.settings[one], point.settings[other] if other else None].append(point)
    columns, rows = sweep.grid[one], sweep.grid[other] if other else [None]
    known = {place: _means(points, sweep.dense_macs) for place, points in cells.items()}
    values = [accuracy for accuracy, _ in known.values() if accuracy is not None]
    low, span = min(values, default=0.0), (max(values, default=0.0) - min(values, default=0.0)) or 1.0
    wide = (WIDTH - _LEFT - 4) / len(columns)
    marks, told = [], []
    for across, column in enumerate(columns):
        left = _LEFT + across * wide
        marks.append(label(left + wide / 2, _TOP - 8, _text(column, wide), "tick", "middle"))
        for down, row in enumerate(rows):
            top = _TOP + down * _CELL
            accuracy, macs = known.get((column, row), (None, None))
            says = DASH if accuracy is None else f"{100 * accuracy:.1f}"
            place = f"{one} {column}" + (f", {other} {row}" if other else "")
            told.append(f"{one_line(place)}: {says} %")
            strength = 0.0 if accuracy is None else _FAINT + (_FULL - _FAINT) * (accuracy - low) / span
            marks.append(_cell(left, top, wide, strength, told[-1]))
            marks.append(label(left + wide / 2, top + 20, says, "", "middle"))
            if macs is not None:
                marks.append(label(left + wide / 2, top + 35, f"{100 * macs:.0f} %", "tick", "middle"))
    if other:
        middles = [_TOP + (down + 0.5) * _CELL + 4 for down in range(len(rows))]
        marks += [label(_LEFT - 8, y, _text(row, _LEFT), "tick", "end") for y, row in zip(middles, rows, strict=True)]
    bottom = _TOP + len(rows) * _CELL
    marks.append(label(WIDTH - 4, bottom + 18, f"across: {one_line(one)}", "axis", "end"))
    if other:
        marks.append(label(4, bottom + 18, f"down: {one_line(other)}", "axis"))
    title = f"Sensitivity to {one_line(one)}" + (f" and {one_line(other)}" if other else "")
    caption = "Validation accuracy in %, below it MACs of the dense network's."
    caption += f" Means over {', '.join(map(one_line, rest))}." if rest else ""
    return Figure(title, svg(marks, f"{title}. " + "; ".join(told), bottom + _FOOT), caption)


def _means(points: Sequence[SweepPoint], dense: int | None) -> tuple[float | None, float | None]:
    """Accuracy, and MACs as a share of the dense network's, over the points that came to something."""
    accuracies = [point.validation_accuracy for point in points if point.validation_accuracy is not None]
    shares = [point.macs / dense for point in points if point.macs is not None and dense]
    return fmean(accuracies) if accuracies else None, fmean(shares) if shares else None


def _cell(left: float, top: float, wide: float, strength: float, told: str) -> Markup:
    size = {"x": left + 1, "y": top + 1, "width": wide - 2, "height": _CELL - 2}
    return element("rect", element("title", told), **size, class_="heat", fill_opacity=strength)


def _text(value: Setting | None, room: float) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return shorten(one_line(text), max(4, int(room / 7)))
