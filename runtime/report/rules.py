"""Harm against measured time, a curve for each rule that one may choose by: the headline's frontier."""

from __future__ import annotations

from dataclasses import replace

from ...records import Frontier, RulePoint
from .assemble import Report
from .curves import end_labels
from .plots import Figure, frame, plot_area
from .svg import LETTER, WIDTH, dot, path, scale, shorten, svg
from .units import one_line

_CLASSES = ("headline", "layer l1", "layer l2", "layer l3")  # in the order of the curves
_END_NAME = 16  # letters of a rule's name
_BEYOND = 1.15  # of the worst that the first rule does: what lies above is left out, and said


def frontier_figure(report: Report) -> Figure | None:
    """None where the headline has no frontier."""
    found = report.headline.side.frontier
    if found is None or not any(len(curve.points) > 1 for curve in found.curves):
        return None
    drops = all(point.drop is not None for curve in found.curves for point in curve.points)
    across, up, area = plot_area()
    limit = _BEYOND * max(_harm(point, drops) for point in found.curves[0].points) or 1.0
    shown = [[p for p in curve.points if _harm(p, drops) <= limit] for curve in found.curves]
    margin = 8 + LETTER * _END_NAME
    points = [point for listed in shown for point in listed]
    x = scale([point.time for point in points], across[0] + margin, WIDTH - 14, pad=0.04)
    y = scale([0.0, *(_harm(point, drops) for point in points)], *up, pad=0.05)
    name = f"lost {found.metric} / points" if drops else "error of the outputs"
    marks = frame(replace(x, start=across[0]), y, "share of the original's time", name)
    ends = []
    for index, (curve, listed) in enumerate(zip(found.curves, shown, strict=True)):
        if not listed:
            continue
        class_ = _CLASSES[index % len(_CLASSES)]
        places = sorted((x(point.time), y(_harm(point, drops))) for point in listed)
        marks.append(path(places, f"curve {class_}", title=one_line(curve.rule)))
        for point in listed:
            told = f"{one_line(curve.rule)}: {point.time:.3f} of the time, {_harm(point, drops):.3g}"
            marks.append(dot(x(point.time), y(_harm(point, drops)), f"dot {class_}", told))
        ends.append((across[0], places[0][1], shorten(one_line(curve.rule), _END_NAME), f"name {class_}"))
    hidden = sum(len(curve.points) for curve in found.curves) - len(points)
    return Figure(
        "Harm against measured time", svg([*marks, *end_labels(ends, area)], _alt(found)), _caption(found, hidden)
    )


def _harm(point: RulePoint, drops: bool) -> float:
    return 100 * (point.drop or 0.0) if drops else point.damage


def _alt(found: Frontier) -> str:
    rules = (
        f"{one_line(c.rule)}: {len(c.points)} networks down to {min(p.time for p in c.points):.3f}"
        for c in found.curves
    )
    return "Harm against measured time. " + "; ".join(rules)


def _caption(found: Frontier, hidden: int) -> str:
    threads = f"{found.threads} thread{'' if found.threads == 1 else 's'}"
    said = "Better is down and to the left. One network a point, timed in turns in one run"
    said += f" on {one_line(found.device)}, {threads}; all have the same exact rewrites."
    said += (
        f" Judged on {found.n} inputs that they were not fitted to."
        if found.n
        else " Damage as predicted from weights."
    )
    return said + (f" Beyond the axis: {hidden}." if hidden else "")
