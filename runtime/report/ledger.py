"""Where the time went that the MACs promised to save: the headline's explanation, as a waterfall."""

from __future__ import annotations

from dataclasses import replace

from markupsafe import Markup

from ...records import Explanation, Seconds
from .assemble import Report
from .plots import Figure, x_axis
from .svg import LETTER, WIDTH, Scale, element, label, line, path, scale, shorten, svg
from .units import one_line

_NAME = 18  # letters of a cause
_ROW, _TOP, _BOTTOM, _THICK = 28.0, 8.0, 40.0, 14.0


def waterfall(report: Report) -> Figure | None:
    """None where nobody explained the headline's file."""
    found = report.headline.side.explanation
    if found is None or found.second.sha256 != report.headline.variant.sha256:
        return None
    if found.hoped is None or found.residual is None:
        return None
    steps = [(one_line(bar.cause), bar.costs) for bar in found.bars] + [("not explained", found.residual)]
    ends = [found.hoped.value]
    for _, costs in steps:
        ends.append(ends[-1] + costs.value)
    base = _TOP + _ROW * (len(steps) + 2)
    x = _across([1e3 * end for end in ends])
    marks = [line(x(tick), _TOP, x(tick), base, "grid") for tick in x.ticks()]
    marks += x_axis(x, base, "ms")
    marks += _row(x, 0, "its MACs promise", 0.0, ends[0], f"{1e3 * ends[0]:.3g}", "baseline")
    for number, (name, costs) in enumerate(steps, 1):
        marks += _row(x, number, name, ends[number - 1], ends[number], f"{1e3 * costs.value:+.3g}", "")
        marks.append(_whisker(x, number, ends[number - 1], costs))
    marks += _row(x, len(steps) + 1, "it takes", 0.0, ends[-1], f"{1e3 * ends[-1]:.3g}", "headline")
    return Figure("Where the time went", svg(marks, _alt(found), base + _BOTTOM), _caption(found))


def _across(ends_ms: list[float]) -> Scale:
    """From 0, with room for the causes' names before it and for numbers after it."""
    return replace(scale([0.0, *ends_ms], 8 + LETTER * _NAME, WIDTH - 46, pad=0.0), low=min(0.0, *ends_ms))


def _row(x: Scale, number: int, name: str, begin_s: float, end_s: float, said: str, class_: str) -> list[Markup]:
    low, high = sorted((x(1e3 * begin_s), x(1e3 * end_s)))
    top = _TOP + _ROW * number + (_ROW - _THICK) / 2
    corners = [(low, top), (high, top), (high, top + _THICK), (low, top + _THICK)]
    middle = top + _THICK / 2 + 4
    return [
        path(corners, f"ridge {class_}".strip(), closed=True, title=f"{name}: {said} ms"),
        label(x.start - 8, middle, shorten(name, _NAME), f"name {class_}".strip(), "end"),
        label(high + 6, middle, said, "tick"),
    ]


def _whisker(x: Scale, number: int, begin_s: float, costs: Seconds) -> Markup:
    """The interval of a bar's end."""
    height = _TOP + _ROW * number + _ROW / 2
    low, high = (x(1e3 * (begin_s + end)) for end in (costs.low, costs.high))
    return element("g", line(low, height, high, height, "bar baseline"), class_="whisker")


def _alt(found: Explanation) -> str:
    causes = "; ".join(f"{one_line(bar.cause)} {1e3 * bar.costs.value:+.3g} ms" for bar in found.bars)
    return f"Where the time went. {one_line(found.verdict)}. {causes}"


def _caption(found: Explanation) -> str:
    said = f"{one_line(found.second.file)} beside {one_line(found.first.file)} on {one_line(found.device)}, "
    said += f"{found.threads} thread{'' if found.threads == 1 else 's'}, {found.launches} launches. "
    said += "Each bar is measured on the file in which only that cause was taken away; lines are 95 % intervals."
    best = found.improvements[0] if found.improvements else None
    if best is not None:
        said += f" Worth making next: {one_line(best.name)}, {1e3 * best.worth.value:.3g} ms."
    return said
