"""The figures. Each returns a `Figure`, or None where the records hold nothing to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ...records import Comparison, EpochRow, Score
from .assemble import Report, Row
from .svg import (
    HEIGHT,
    LETTER,
    WIDTH,
    Box,
    Scale,
    dot,
    label,
    line,
    path,
    place_labels,
    scale,
    shorten,
    svg,
)
from .units import is_share, milliseconds, one_line, ratio_interval, ratio_text, score_interval, score_text

_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 14.0, 26.0, 40.0
_BINS = 110
_RIDGE = 42.0
_END_NAME = 14
# The axis of the distributions ends at these quantiles of each variant; the caption counts what lies beyond.
_TAILS = (0.005, 0.995)


@dataclass(frozen=True)
class Figure:
    """A drawing with its heading and a caption that says what is not in it."""

    title: str
    drawing: Markup
    caption: str


def figures(report: Report) -> list[Figure]:
    """The measurement's figures in the page's order."""
    made = (distribution(report), realised(report), accuracy_latency(report))
    return [figure for figure in made if figure]


def training_figures(report: Report) -> list[Figure]:
    """The training curves: validation accuracy of all, ranks and live groups of the headline's layers."""
    made = (_accuracy_curves(report), _rank_curves(report), _group_curves(report))
    return [figure for figure in made if figure]


# --- frame --------------------------------------------------------------------------------------------------


def _frame(x: Scale, y: Scale, x_name: str, y_name: str, suffix: str = "") -> list[Markup]:
    """Grid, tick labels and the names of both axes; the vertical one stands above its axis, upright."""
    marks = []
    for tick in y.ticks():
        marks.append(line(x.start, y(tick), x.end, y(tick), "grid"))
        marks.append(label(x.start - 6, y(tick) + 4, f"{tick:g}{suffix}", "tick", "end"))
    marks += _x_axis(x, y.start, x_name)
    marks.append(label(4, 12, y_name, "axis"))
    return marks


def _x_axis(x: Scale, base: float, name: str) -> list[Markup]:
    marks = [line(x.start, base, x.end, base, "base")]
    for tick in x.ticks():
        marks.append(line(x(tick), base, x(tick), base + 4, "base"))
        marks.append(label(x(tick), base + 17, f"{tick:g}", "tick", "middle"))
    return [*marks, label(x.end, base + 33, name, "axis", "end")]


def _plot_area() -> tuple[tuple[float, float], tuple[float, float], Box]:
    across, up = (_LEFT, WIDTH - _RIGHT), (HEIGHT - _BOTTOM, _TOP)
    return across, up, Box(_LEFT, _TOP - 4, WIDTH - 2, HEIGHT - _BOTTOM - 2)


def _missing(report: Report, drawn: Sequence[Row]) -> str:
    names = [one_line(row.name) for row in report.rows if row not in drawn]
    return f" Not measured: {', '.join(names)}." if names else ""


# --- latency ------------------------------------------------------------------------------------------------


def distribution(report: Report) -> Figure | None:
    """A ridge for each variant over one logarithmic axis; ticks below mark the median of each launch."""
    rows = [row for row in report.rows if row.samples_s.size and row.samples_s.min() > 0]
    if not rows:
        return None
    ends = [q for row in rows for q in np.quantile(row.samples_s * 1e3, _TAILS)]
    x = scale(ends, 6, WIDTH - 6, log=True, pad=0.03)
    base = 10 + _RIDGE * len(rows)
    marks = [line(x(t), 8, x(t), base, "grid") for t in x.ticks()] + _x_axis(x, base, "latency / ms, log scale")
    for index, row in enumerate(rows):
        marks += _ridge(row, x, 8 + _RIDGE * (index + 1))
    beyond = sum(int(((row.samples_s * 1e3 < x.low) | (row.samples_s * 1e3 > x.high)).sum()) for row in rows)
    total = sum(row.samples_s.size for row in rows)
    caption = f"{total} samples; each ridge has its own height. Short ticks: the median of one launch."
    caption += f" Beyond the axis: {beyond}." if beyond else ""
    alt = "Latency distributions. " + "; ".join(f"{one_line(r.name)}: {_spread(r)}" for r in rows)
    return Figure("Latency distribution", svg(marks, alt, base + 40), caption + _missing(report, rows))


def _ridge(row: Row, x: Scale, base: float) -> list[Markup]:
    heights, middles = _density(row.samples_s * 1e3, x)
    tall = _RIDGE - 20
    shape = [(x(m), base - 4 - tall * h) for m, h in zip(middles, heights, strict=True)]
    seen = np.flatnonzero(heights)
    shape = shape[max(seen[0] - 1, 0) : seen[-1] + 2]
    outline = [(shape[0][0], base - 4), *shape, (shape[-1][0], base - 4)]
    medians = [float(np.median(launch_s)) * 1e3 for launch_s in row.launches_s]
    told = f"{one_line(row.name)}: {_spread(row)}, {row.samples_s.size} samples"
    left_free = x(middles[int(heights.argmax())]) > WIDTH / 2
    place, anchor = ((8.0, base - 9), "start") if left_free else ((x.end - 2, base - 9), "end")
    name = shorten(one_line(row.name), 28)
    return [
        line(x.start, base - 4, x.end, base - 4, "grid"),
        path(outline, f"ridge {row.role}", closed=True, title=told),
        *(line(x(m), base - 3, x(m), base + 1, f"rug {row.role}") for m in medians if x.low < m < x.high),
        label(*place, name, f"name {row.role}", anchor),
    ]


def _density(values_ms: NDArray[np.float64], x: Scale) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lightly smoothed histogram over the log axis, scaled to a peak of 1, and the bins' middles."""
    edges = np.geomspace(x.low, x.high, _BINS + 1)
    counts, _ = np.histogram(values_ms, edges)
    smooth = np.convolve(counts, [0.25, 0.5, 0.25], mode="same")  # binomial, one bin wide
    return smooth / max(smooth.max(), 1e-12), np.sqrt(edges[:-1] * edges[1:])


def _spread(row: Row) -> str:
    return f"p50 {milliseconds(row.quantile_s(0.5))}, p90 {milliseconds(row.quantile_s(0.9))}"


# --- gain ---------------------------------------------------------------------------------------------------


def realised(report: Report) -> Figure | None:
    """Measured speed-up over MAC reduction; on the diagonal every saved MAC is saved time."""
    points = [
        (row, reduction, row.comparison)
        for row in _headline_last(report.rows)
        if row.comparison and (reduction := report.mac_reduction(row))
    ]
    if not points:
        return None
    across, up, _ = _plot_area()
    most = max(max(reduction, comparison.high) for _, reduction, comparison in points)
    least = min(min(reduction, comparison.low) for _, reduction, comparison in points)
    ends = [min(least, 1.0), max(most, 1.1)]
    x, y = scale(ends, *across, log=True, pad=0.08), scale(ends, *up, log=True, pad=0.08)
    marks = _frame(x, y, "MAC reduction / ×, log scale", "measured speed-up / ×, log scale")
    marks += [line(x(x.low), y(x.low), x(x.high), y(x.high), "ideal"), _along_diagonal(x, y)]
    marks.append(line(x.start, y(1), x.end, y(1), "one"))
    told = [f"{reduction:.2f}× fewer MACs, {_compared(c)} the speed" for _, reduction, c in points]
    crosses = [
        _Cross(row, x(reduction), y(c.ratio), (x(reduction), x(reduction)), (y(c.low), y(c.high)), text)
        for (row, reduction, c), text in zip(points, told, strict=True)
    ]
    drawn = [report.baseline, *(row for row, _, _ in points)]
    title = "MAC reduction against measured speed-up"
    caption = "Below the dashed line, saved MACs did not become saved time. Bars: 95 % intervals."
    return Figure(title, _scatter(title, marks, crosses, _diagonal_boxes(x, y)), caption + _missing(report, drawn))


def _along_diagonal(x: Scale, y: Scale) -> Markup:
    """The diagonal's own words, above it near its upper end."""
    at = x.low * (x.high / x.low) ** 0.80
    return label(x(at) - 8, y(at) - 6, "all of it realised", "note", "end")


def _diagonal_boxes(x: Scale, y: Scale) -> list[Box]:
    """The diagonal as a chain of boxes; both scales span the same values."""
    places = [(x(value), y(value)) for value in np.geomspace(x.low, x.high, 60)]
    return [Box(across - 3, up - 2, across + 3, up + 2) for across, up in places]


def accuracy_latency(report: Report) -> Figure | None:
    """Accuracy over latency relative to the baseline (1 / ratio), with both 95 % intervals."""
    rows = _headline_last(report.rows)
    points = [(row, speed, row.score) for row in rows if row.score and (speed := report.speed(row))]
    if len(points) < 2:
        return None
    across, up, _ = _plot_area()
    factor = 100.0 if all(is_share(score) for _, _, score in points) else 1.0
    x = scale([end for row, _, _ in points for end in _relative_span(row)], *across, pad=0.09)
    y = scale([end * factor for _, _, score in points for end in (score.low, score.high)], *up)
    metric = one_line(points[0][2].metric.replace("_", " ")) + (" / %" if factor > 1 else "")
    marks = _frame(x, y, f"latency relative to {shorten(one_line(report.baseline.name))}", metric)
    crosses = []
    for row, speed, score in points:
        (fast, slow), told = _relative_span(row), f"{_scored(score)} at {1 / speed:.3f} of the baseline's latency"
        bars = (x(fast), x(slow)), (y(score.low * factor), y(score.high * factor))
        crosses.append(_Cross(row, x(1 / speed), y(score.value * factor), *bars, told))
    caption = f"Better is up and to the left. 1 is {milliseconds(report.baseline.quantile_s(0.5))} at p50. "
    caption += "Bars: 95 % intervals." + _missing(report, [row for row, _, _ in points])
    title = "Accuracy against latency"
    return Figure(title, _scatter(title, marks, crosses, []), caption)


@dataclass(frozen=True)
class _Cross:
    """A point in drawing units with the ends of its horizontal and vertical interval, and its words."""

    row: Row
    x: float
    y: float
    across: tuple[float, float]
    up: tuple[float, float]
    told: str

    @property
    def boxes(self) -> list[Box]:
        (left, right), (bottom, top) = self.across, self.up
        return [Box(left, self.y - 1, right, self.y + 1), Box(self.x - 1, top, self.x + 1, bottom)]


def _scatter(title: str, marks: list[Markup], crosses: list[_Cross], clear: list[Box]) -> Markup:
    """Points and bars over `marks`, the headline on top and first to place its name; names keep out of `clear`."""
    for c in crosses:
        role = c.row.role
        marks += [
            line(*ends, f"bar {role}") for ends in ((c.across[0], c.y, c.across[1], c.y), (c.x, c.up[0], c.x, c.up[1]))
        ]
        marks.append(dot(c.x, c.y, f"dot {role}", f"{one_line(c.row.name)}: {c.told}"))
    named = [(c.x, c.y, shorten(one_line(c.row.name)), f"name {c.row.role}") for c in reversed(crosses)]
    marks += place_labels(named, _plot_area()[2], [*clear, *(box for c in crosses for box in c.boxes)])
    return svg(marks, f"{title}. " + "; ".join(f"{one_line(c.row.name)}: {c.told}" for c in crosses))


def _headline_last(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.role == "headline")


def _compared(comparison: Comparison) -> str:
    return f"{ratio_text(comparison)} ({ratio_interval(comparison)})"


def _relative_span(row: Row) -> tuple[float, float]:
    return (1 / row.comparison.high, 1 / row.comparison.low) if row.comparison else (1.0, 1.0)


def _scored(score: Score) -> str:
    return f"{score_text(score)} ({score_interval(score)})"


# --- training -----------------------------------------------------------------------------------------------

_Curve = tuple[str, str, list[tuple[float, float]]]


def _curves(title: str, curves: list[_Curve], y_name: str, caption: str, top: float | None = None) -> Figure | None:
    """Lines over epochs, each named at its right end where the ends keep apart."""
    curves = [curve for curve in curves if curve[2]]
    if not curves:
        return None
    across, up, area = _plot_area()
    points = [point for _, _, line_points in curves for point in line_points]
    margin = 8 + LETTER * min(max(len(name) for name, _, _ in curves), _END_NAME)
    x = scale([1.0, *(p[0] for p in points)], across[0], WIDTH - margin, pad=0)
    y = scale([*(p[1] for p in points), *([0.0, top] if top else [])], *up, pad=0.03)
    marks = _frame(x, y, "epoch", y_name)
    for name, class_, line_points in curves:
        marks.append(path([(x(e), y(v)) for e, v in line_points], f"curve {class_}", title=name))
    ends = [(x(p[-1][0]), y(p[-1][1]), shorten(name, _END_NAME), f"name {class_}") for name, class_, p in curves]
    alt = f"{title}, last epoch. " + "; ".join(f"{name}: {p[-1][1]:.1f}" for name, _, p in curves)
    return Figure(title, svg([*marks, *_end_labels(ends, area)], alt), caption)


def _end_labels(ends: list[tuple[float, float, str, str]], area: Box) -> list[Markup]:
    """Names to the right of the curves' ends, moved apart downwards; what finds no room is left to the tooltip."""
    marks, floor = [], area.top
    for x, y, text, class_ in sorted(ends, key=lambda end: end[1]):
        at = max(y, floor)
        if at > area.bottom + 6:
            break
        marks.append(label(x + 6, at + 4, text, class_))
        floor = at + 13
    return marks


def _accuracy_curves(report: Report) -> Figure | None:
    curves: list[_Curve] = [
        (one_line(row.name), row.role, [(e.epoch, e.validation_accuracy * 100) for e in row.side.train.epochs])
        for row in report.rows
        if row.side.train
    ]
    caption = "On the part of the training data that is held apart; the test data play no role here."
    return _curves("Validation accuracy", curves, "validation accuracy / %", caption)


def _layer_curves(report: Report, share: Callable[[int, EpochRow], float | None]) -> list[_Curve]:
    """One curve a layer of the headline's training, in per cent; epochs without a value are left out."""
    train = report.headline.side.train
    if train is None or not train.epochs:
        return []
    return [
        (
            one_line(layer.name),
            f"layer l{index % 4}",
            [
                (row.epoch, value * 100)
                for row in train.epochs
                if index < len(row.layers) and (value := share(index, row)) is not None
            ],
        )
        for index, layer in enumerate(train.epochs[-1].layers)
    ]


def _rank_curves(report: Report) -> Figure | None:
    curves = _layer_curves(report, lambda i, row: row.layers[i].rank / max(row.layers[i].full_rank, 1))
    caption = f"Each layer of {one_line(report.headline.name)}, as it would be exported at that epoch."
    return _curves("Ranks", curves, "rank / % of full", caption, top=100.0)


def _group_curves(report: Report) -> Figure | None:
    def live(index: int, row: EpochRow) -> float | None:
        layer = row.layers[index]
        return layer.live_groups / layer.groups if layer.live_groups is not None and layer.groups else None

    caption = f"Channels of {one_line(report.headline.name)} that are not exactly zero."
    return _curves("Live groups", _layer_curves(report, live), "live groups / %", caption, top=100.0)
