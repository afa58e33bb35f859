"""What the rows of the ablation say: tables and a picture.

All differences are taken within a seed and a way of finishing, so that what both share cancels: to the dense network;
to the post-hoc SVD at the network's own number of parameters; to the narrower dense ones at its own measured time. The
latter two are curves, linear in the logarithm of the size between networks. Intervals are 95 % t over seeds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from ..files import replacing
from ..records import AblationRow
from ..runtime.stats import geometric_mean, half_width
from .arms import BOTH, DENSE, GROUPS, LOW_RANK, NARROW, SVD, TAUGHT, Strengths
from .curves import at, pareto

Size = Callable[[AblationRow], float | None]
FINISHED = {"none": "as it is", "labels": "from labels", "distilled": "distilled"}
COLOURS = {DENSE: "k", NARROW: "#6b7280", TAUGHT: "#9ca3af", SVD: "C3", LOW_RANK: "C0", GROUPS: "C2", BOTH: "C1"}
SIZES: dict[str, Size] = {
    "parameters": lambda row: row.parameters,
    "MACs": lambda row: row.macs,
    "measured time, share of the dense network's": lambda row: None if row.speedup is None else 1 / row.speedup,
}
_PARAMETERS, _, _TIME = SIZES.values()


def points(rows: Sequence[AblationRow]) -> dict[tuple[str, str, str], list[AblationRow]]:
    """Rows that differ by their seed alone, by finish, arm and point, in the order of the rows."""
    found: dict[tuple[str, str, str], list[AblationRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.seed):
        found[row.finish, row.arm, row.point].append(row)
    return dict(sorted(found.items(), key=lambda item: list(FINISHED).index(item[0][0])))


def to_curve(rows: Sequence[AblationRow], curve: Sequence[AblationRow], size: Size) -> list[float]:
    """Accuracy less that of the curve through networks of the same seed and finish, at each row's own size.

    Networks that another is smaller and better than, on the mean over seeds, are not on the curve. A row has no
    difference where it or the curve has no size, or below the smallest of the curve.
    """
    places = {
        f"{arm}, {point}": {row.seed: (place, accuracy(row)) for row in found if (place := size(row)) is not None}
        for (finish, arm, point), found in points(curve).items()
        if finish == rows[0].finish
    }
    means = {name: tuple(map(fmean, zip(*of.values(), strict=True))) for name, of in places.items() if of}
    front = pareto({name: (mean[0], mean[1]) for name, mean in means.items()})
    found = []
    for row in rows:
        wanted, here = [places[name][row.seed] for name in front if row.seed in places[name]], size(row)
        other = None if here is None else at(here, wanted)
        if other is not None:
            found.append(accuracy(row) - other)
    return found


def accuracy(row: AblationRow) -> float:
    """On the test images."""
    assert row.test_accuracy is not None, "networks that were only tried are not compared"
    return row.test_accuracy


# --- tables -------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[AblationRow]) -> str:
    """A point a line, by finish."""
    lines = [
        "| network | size | fine-tuned | seeds | parameters | MACs | speed | test accuracy | to dense | "
        "to post-hoc SVD, equal size | to narrower dense, equal time |",
        f"| --- | --- | --- |{' ---: |' * 8}",
    ]
    dense, svd, narrow = (
        [row for row in rows if row.arm in arms] for arms in ((DENSE,), (DENSE, SVD), (DENSE, NARROW))
    )
    for (finish, arm, point), found in points(rows).items():
        cells = [
            arm,
            point,
            FINISHED[finish],
            str(len(found)),
            f"{fmean(row.parameters for row in found) / 1e3:.1f} k",
            f"{fmean(row.macs for row in found) / 1e6:.2f} M",
            _speed(found),
            _spread([accuracy(row) for row in found], len(found)),
            "" if arm == DENSE else _spread(to_curve(found, dense, lambda _: 1.0), len(found), "+"),
            "" if arm in (DENSE, SVD) else _spread(to_curve(found, svd, _PARAMETERS), len(found), "+"),
            "" if arm in (DENSE, NARROW) else _spread(to_curve(found, narrow, _TIME), len(found), "+"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tried(questions: Mapping[str, Sequence[AblationRow | None]], found: Strengths) -> str:
    """What each strength was chosen by, on the validation split."""
    lines = ["| strength | network | τ | λ | rate | validation accuracy | |", f"| --- | --- |{' ---: |' * 4} --- |"]
    for what, rows in questions.items():
        for row in rows:
            if row is None:
                lines.append(f"| {what} | | | | | failed | |")
                continue
            value = row.rate if what == "rate" else row.group if what == "group" else row.low_rank
            chosen = "chosen" if value == getattr(found, what) else ""
            rate = "" if row.rate is None else f"{row.rate:g}"
            strengths = f"{row.low_rank:g} | {row.group:g} | {rate}"
            score = f"{100 * row.validation_accuracy:.2f}"
            lines.append(f"| {what} | {row.arm}, {row.point} | {strengths} | {score} | {chosen} |")
    return "\n".join(lines)


def _speed(rows: Sequence[AblationRow]) -> str:
    """Geometric mean over seeds, with the lowest and the highest end of their intervals."""
    known = [(row.speedup, row.low, row.high) for row in rows if row.speedup and row.low and row.high]
    if not known:
        return ""
    mean = geometric_mean(speed for speed, _, _ in known)
    return f"{mean:.2f}× ({min(low for _, low, _ in known):.2f} to {max(high for *_, high in known):.2f})"


def _spread(values: Sequence[float], seeds: int, sign: str = "") -> str:
    """Points of per cent, and half of the interval; how many seeds, where they are not all."""
    if not values:
        return ""
    told = f"{100 * fmean(values):{sign}.2f}"
    if len(values) > 1:
        told += f" ± {100 * half_width(values):.2f}"
    return told if len(values) == seeds else f"{told} ({len(values)} seeds)"


# --- the picture --------------------------------------------------------------------------------------------


def draw(rows: Sequence[AblationRow], path: Path) -> None:
    """Test accuracy against parameters, MACs and measured time, a row of panels for each way of finishing."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    with mpl.rc_context({"svg.hashsalt": "rankfold", "font.size": 8}):
        figure, panels = plt.subplots(
            len(FINISHED), len(SIZES), figsize=(10, 10), layout="constrained", sharex="col", squeeze=False
        )
        for line, (finish, said) in zip(panels, FINISHED.items(), strict=True):
            for axes, (name, size) in zip(line, SIZES.items(), strict=True):
                axes.set(xscale="log", xlabel=name, title=said)
                for arm, colour in COLOURS.items():
                    _curve(axes, [row for row in rows if row.finish == finish and row.arm == arm], size, arm, colour)
            line[0].set_ylabel("test accuracy, %")
        panels[0][0].legend(frameon=False, loc="lower right")
        with replacing(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        plt.close(figure)


def _curve(axes, rows: Sequence[AblationRow], size: Size, label: str, colour: str) -> None:
    """An arm: its points, with 95 % intervals over seeds."""
    places = []
    for found in points(rows).values():
        sizes, scores = [place for row in found if (place := size(row)) is not None], [accuracy(row) for row in found]
        if sizes:
            half = half_width(scores) if len(scores) > 1 else 0.0
            places.append((geometric_mean(sizes), 100 * fmean(scores), 100 * half))
    if places:
        at_size, score, half = zip(*sorted(places), strict=True)
        axes.errorbar(at_size, score, half, fmt=".-", lw=1, capsize=2, color=colour, label=label)
