"""Accuracy against measured latency: `python -m rankfold.benchmarks.curves docs/results/chars74k.jsonl`.

Prints a Markdown table and draws the picture beside the rows. For every network that is not on the curve of
plain dense ones, the difference to that curve *at its own measured latency* is taken within each seed, so that
what the seeds share cancels; its 95 % t interval is over seeds.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from ..errors import InputError, RankfoldError
from ..files import replacing
from ..records import ResultRow
from ..runtime.stats import half_width

DENSE_PREFIX = "dense"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Point:
    """A variant over its seeds. `above_dense` is in accuracy at equal latency; None for a dense network."""

    variant: str
    seeds: int
    time: float
    accuracy: float
    accuracy_half_width: float | None
    speedup: float
    speedup_low: float
    speedup_high: float
    parameters: float
    macs: float
    above_dense: float | None
    above_dense_half_width: float | None


def read_rows(path: Path) -> list[ResultRow]:
    """The rows of a .jsonl file of results."""
    try:
        return [ResultRow.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; run the comparison first") from error
    except ValueError as error:
        raise InputError(f"{path}: not rows of results: {str(error).splitlines()[0]}") from error


def points(rows: Sequence[ResultRow]) -> list[Point]:
    """One point a variant, fastest last."""
    by_variant: dict[str, list[ResultRow]] = defaultdict(list)
    for row in rows:
        by_variant[row.variant].append(row)
    dense = {name: found for name, found in by_variant.items() if name.startswith(DENSE_PREFIX)}
    front = pareto({name: (_time(found), _accuracy(found)) for name, found in dense.items()})
    made = [_point(name, found, {n: dense[n] for n in front}) for name, found in by_variant.items()]
    return sorted(made, key=lambda point: -point.time)


def pareto(places: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names by rising time, each more accurate than all that are faster; chosen on means over seeds."""
    front: list[str] = []
    for name in sorted(places, key=lambda n: places[n]):
        if not front or places[name][1] > places[front[-1]][1]:
            front.append(name)
    return front


def at(size: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """Accuracy of the curve (size, accuracy) at `size`, linear in its logarithm; None below the curve's smallest."""
    ordered = sorted(curve)
    if not ordered or size < ordered[0][0]:
        return None
    logs = [math.log(each) for each, _ in ordered]
    return float(np.interp(math.log(size), logs, [accuracy for _, accuracy in ordered]))


def _point(name: str, rows: Sequence[ResultRow], front: Mapping[str, Sequence[ResultRow]]) -> Point:
    differences = [] if name.startswith(DENSE_PREFIX) else _differences(rows, front)
    accuracies = [row.test_accuracy for row in rows]
    speedups = [row.speedup or 1.0 for row in rows]
    return Point(
        variant=name,
        seeds=len(rows),
        time=_time(rows),
        accuracy=fmean(accuracies),
        accuracy_half_width=_half_width(accuracies),
        speedup=math.exp(fmean(map(math.log, speedups))),
        speedup_low=min(row.speedup_low or 1.0 for row in rows),
        speedup_high=max(row.speedup_high or 1.0 for row in rows),
        parameters=fmean(row.parameters or math.nan for row in rows),
        macs=fmean(row.macs or math.nan for row in rows),
        above_dense=fmean(differences) if differences else None,
        above_dense_half_width=_half_width(differences),
    )


def _differences(rows: Sequence[ResultRow], front: Mapping[str, Sequence[ResultRow]]) -> list[float]:
    """Per seed: this network's accuracy less that of the dense curve of the same seed at its latency."""
    found = []
    for row in rows:
        curve = [(_time([d]), d.test_accuracy) for rows_ in front.values() for d in rows_ if d.seed == row.seed]
        dense = at(_time([row]), curve)
        if dense is not None:
            found.append(row.test_accuracy - dense)
    return found


def _time(rows: Sequence[ResultRow]) -> float:
    """Latency as a share of the baseline's; geometric mean."""
    return math.exp(-fmean(math.log(row.speedup or 1.0) for row in rows))


def _accuracy(rows: Sequence[ResultRow]) -> float:
    return fmean(row.test_accuracy for row in rows)


def _half_width(values: Sequence[float]) -> float | None:
    return half_width(values, CONFIDENCE) if len(values) > 1 else None


# --- output -------------------------------------------------------------------------------------------------


def markdown(found: Sequence[Point]) -> str:
    """The points as a table."""
    lines = [
        "| network | seeds | test accuracy | speed-up | parameters | MACs | against the dense curve |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for p in found:
        speedup = f"{p.speedup:.2f}× ({p.speedup_low:.2f}-{p.speedup_high:.2f})"
        above = _points_text(p.above_dense, p.above_dense_half_width, signed=True)
        accuracy = _points_text(p.accuracy, p.accuracy_half_width, signed=False)
        size = f"{p.parameters / 1e3:.1f} k | {p.macs / 1e6:.2f} M"
        lines.append(f"| {p.variant} | {p.seeds} | {accuracy} | {speedup} | {size} | {above} |")
    return "\n".join(lines)


def _points_text(value: float | None, half: float | None, *, signed: bool) -> str:
    if value is None:
        return ""
    text = f"{value * 100:+.2f}" if signed else f"{value * 100:.2f}"
    return text if half is None else f"{text} ± {half * 100:.2f}"


def draw(found: Sequence[Point], path: Path) -> None:
    """Accuracy against relative latency, dense networks joined, with 95 % intervals over seeds."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    with mpl.rc_context({"svg.hashsalt": "rankfold", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
        dense = [p for p in found if p.variant.startswith(DENSE_PREFIX)]
        others = [p for p in found if not p.variant.startswith(DENSE_PREFIX)]
        for group, colour, style, label in (
            (dense, "#6b7280", "o-", "dense, trained as long"),
            (others, "#b45309", "D", "compression-aware, post-hoc"),
        ):
            if group:
                axes.errorbar(
                    [p.time for p in group],
                    [p.accuracy * 100 for p in group],
                    yerr=[(p.accuracy_half_width or 0) * 100 for p in group],
                    fmt=style, color=colour, capsize=2, label=label,
                )  # fmt: skip
        for p in found:
            axes.annotate(p.variant, (p.time, p.accuracy * 100), xytext=(5, 4), textcoords="offset points", fontsize=7)
        axes.set_xscale("log")
        axes.set_xlabel("measured latency, share of the full dense network's (log)")
        axes.set_ylabel("test accuracy, %")
        axes.legend(loc="lower right", frameon=False)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m rankfold.benchmarks.curves", description=__doc__)
    parser.add_argument("rows", type=Path, help="a .jsonl of docs/results")
    arguments = parser.parse_args()
    try:
        found = points(read_rows(arguments.rows))
        draw(found, arguments.rows.with_suffix(".svg"))
    except RankfoldError as error:
        print(f"rankfold: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(markdown(found))


if __name__ == "__main__":
    main()
