"""The training curves: validation accuracy of all, ranks and live groups of the headline's layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from markupsafe import Markup

from ...records import EpochRow, TrainRecord
from .assemble import Report
from .plots import Figure, frame, plot_area
from .svg import LETTER, WIDTH, Box, label, path, scale, shorten, svg
from .units import one_line

# Name, CSS classes, and points of (epoch, value).
Curve = tuple[str, str, list[tuple[float, float]]]
_END_NAME = 14  # letters of a curve's name


def training_figures(report: Report) -> list[Figure]:
    """The training curves: validation accuracy of all, ranks and live groups of the headline's layers."""
    made = [_accuracy_curves(report)]
    if report.headline.side.train is not None:
        name, train = report.headline.name, report.headline.side.train
        made += [rank_curves(name, train), _group_curves(name, train)]
    return [figure for figure in made if figure]


def curves(title: str, lines: list[Curve], y_name: str, caption: str, top: float | None = None) -> Figure | None:
    """Lines over epochs, each named at its right end where the ends keep apart."""
    lines = [curve for curve in lines if curve[2]]
    if not lines:
        return None
    across, up, area = plot_area()
    points = [point for _, _, line_points in lines for point in line_points]
    margin = 8 + LETTER * min(max(len(name) for name, _, _ in lines), _END_NAME)
    x = replace(scale([1.0, *(p[0] for p in points)], across[0], WIDTH - margin, pad=0), whole=True)
    y = scale([*(p[1] for p in points), *([0.0, top] if top else [])], *up, pad=0.03)
    marks = frame(x, y, "epoch", y_name)
    for name, class_, line_points in lines:
        marks.append(path([(x(e), y(v)) for e, v in line_points], f"curve {class_}", title=name))
    ends = [(x(p[-1][0]), y(p[-1][1]), shorten(name, _END_NAME), f"name {class_}") for name, class_, p in lines]
    alt = f"{title}, last epoch. " + "; ".join(f"{name}: {p[-1][1]:.1f}" for name, _, p in lines)
    return Figure(title, svg([*marks, *end_labels(ends, area)], alt), caption)


def end_labels(ends: list[tuple[float, float, str, str]], area: Box) -> list[Markup]:
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
    lines: list[Curve] = [
        (one_line(row.name), row.role, [(e.epoch, e.validation_accuracy * 100) for e in row.side.train.epochs])
        for row in report.rows
        if row.side.train
    ]
    caption = "On the part of the training data that is held apart; the test data play no role here."
    return curves("Validation accuracy", lines, "validation accuracy / %", caption)


def _layer_curves(train: TrainRecord, share: Callable[[int, EpochRow], float | None]) -> list[Curve]:
    """One curve a layer of a training, in per cent; epochs without a value are left out."""
    if not train.epochs:
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


def rank_curves(name: str, train: TrainRecord) -> Figure | None:
    """Every layer's rank over the epochs of a training."""
    lines = _layer_curves(train, lambda i, row: row.layers[i].rank / max(row.layers[i].full_rank, 1))
    caption = f"Each layer of {one_line(name)}, as it would be exported at that epoch."
    return curves("Ranks", lines, "rank / % of full", caption, top=100.0)


def _group_curves(name: str, train: TrainRecord) -> Figure | None:
    def live(index: int, row: EpochRow) -> float | None:
        layer = row.layers[index]
        return layer.live_groups / layer.groups if layer.live_groups is not None and layer.groups else None

    caption = f"Channels of {one_line(name)} that are not exactly zero."
    return curves("Live groups", _layer_curves(train, live), "live groups / %", caption, top=100.0)
