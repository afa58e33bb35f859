"""The figures. Each returns a `Figure`, or None where the records hold nothing to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ...records import Comparison, Score
from .assemble import Report, Row
from .svg import (
    HEIGHT,
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
_ROW, _LEAST_ROW, _RIDGES = 42.0, 28.0, 380.0  # a ridge's height, the least, and that of all together
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


# --- frame --------------------------------------------------------------------------------------------------


def frame(x: Scale, y: Scale, x_name: str, y_name: str, suffix: str = "") -> list[Markup]:
    """Grid, tick labels and the names of both axes; the vertical one stands above its axis, upright."""
    marks = []
    for tick in y.ticks():
        marks.append(line(x.start, y(tick), x.end, y(tick), "grid"))
        marks.append(label(x.start - 6, y(tick) + 4, f"{tick:g}{suffix}", "tick", "end"))
    marks += x_axis(x, y.start, x_name)
    marks.append(label(4, 12, y_name, "axis"))
    return marks


def x_axis(x: Scale, base: float, name: str) -> list[Markup]:
    """The horizontal axis of a figure, its ticks and its name."""
    marks = [line(x.start, base, x.end, base, "base")]
    for tick in x.ticks():
        marks.append(line(x(tick), base, x(tick), base + 4, "base"))
        marks.append(label(x(tick), base + 17, f"{tick:g}", "tick", "middle"))
    return [*marks, label(x.end, base + 33, name, "axis", "end")]


def plot_area() -> tuple[tuple[float, float], tuple[float, float], Box]:
    """Left and right, bottom and top of a plot in drawing units, and the box that names stay in."""
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
    tall = max(_LEAST_ROW, min(_ROW, _RIDGES / len(rows)))
    base = 10 + tall * len(rows)
    marks = [line(x(t), 8, x(t), base, "grid") for t in x.ticks()] + x_axis(x, base, "latency / ms, log scale")
    for index, row in enumerate(rows):
        marks += _ridge(row, x, 8 + tall * (index + 1), tall - 16)
    beyond = sum(int(((row.samples_s * 1e3 < x.low) | (row.samples_s * 1e3 > x.high)).sum()) for row in rows)
    total = sum(row.samples_s.size for row in rows)
    caption = f"{total} samples; each ridge has its own height. Short ticks: the median of one launch."
    caption += f" Beyond the axis: {beyond}." if beyond else ""
    alt = "Latency distributions. " + "; ".join(f"{one_line(r.name)}: {_spread(r)}" for r in rows)
    return Figure("Latency distribution", svg(marks, alt, base + 40), caption + _missing(report, rows))


def _ridge(row: Row, x: Scale, base: float, tall: float) -> list[Markup]:
    heights, middles = _density(row.samples_s * 1e3, x)
    shape = [(x(m), base - 4 - tall * h) for m, h in zip(middles, heights, strict=True)]
    seen = np.flatnonzero(heights)
    shape = shape[max(seen[0] - 1, 0) : seen[-1] + 2]
    outline = [(shape[0][0], base - 4), *shape, (shape[-1][0], base - 4)]
    medians = [float(np.median(launch_s)) * 1e3 for launch_s in row.launches_s]
    told = f"{one_line(row.name)}: {_spread(row)}, {row.samples_s.size} samples"
    zone = _BINS // 3  # where the name stands, at whichever end the ridge is lower
    left_free = heights[:zone].max() <= heights[-zone:].max()
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
    across, up, _ = plot_area()
    most = max(max(reduction, comparison.high) for _, reduction, comparison in points)
    least = min(min(reduction, comparison.low) for _, reduction, comparison in points)
    ends = [min(least, 1.0), max(most, 1.1)]
    x, y = scale(ends, *across, log=True, pad=0.08), scale(ends, *up, log=True, pad=0.08)
    marks = frame(x, y, "MAC reduction / ×, log scale", "measured speed-up / ×, log scale")
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
    across, up, _ = plot_area()
    factor = 100.0 if all(is_share(score) for _, _, score in points) else 1.0
    x = scale([end for row, _, _ in points for end in _relative_span(row)], *across, pad=0.09)
    y = scale([end * factor for _, _, score in points for end in (score.low, score.high)], *up)
    metric = one_line(points[0][2].metric.replace("_", " ")) + (" / %" if factor > 1 else "")
    marks = frame(x, y, f"latency relative to {shorten(one_line(report.baseline.name))}", metric)
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
    marks += place_labels(named, plot_area()[2], [*clear, *(box for c in crosses for box in c.boxes)])
    return svg(marks, f"{title}. " + "; ".join(f"{one_line(c.row.name)}: {c.told}" for c in crosses))


def _headline_last(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.role == "headline")


def _compared(comparison: Comparison) -> str:
    return f"{ratio_text(comparison)} ({ratio_interval(comparison)})"


def _relative_span(row: Row) -> tuple[float, float]:
    return (1 / row.comparison.high, 1 / row.comparison.low) if row.comparison else (1.0, 1.0)


def _scored(score: Score) -> str:
    return f"{score_text(score)} ({score_interval(score)})"
