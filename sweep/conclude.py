"""The end of a sweep: all networks measured side by side, and the record of what each came to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import CheckFailed
from ..files import locked, write_bytes
from ..records import Bench, Evaluation, Score, Sweep, SweepPoint
from ..stages import DENSE, bench_once
from .grid import ENERGY, Task
from .study import opened

WITHIN = 0.01  # of accuracy: what counts as as good


def concluded(task: Task, *, device: str | None, pairs: int | None) -> Sweep:
    """Measure all networks side by side (unless there is no `device`) and write the records; sweep.json is last.

    One process does it at a time; what another has measured of these very files is kept.
    """
    study = opened(task)
    failures = {t.user_attrs["point"]: t.user_attrs["failure"] for t in study.get_trials() if "failure" in t.user_attrs}
    with locked(task.out / "conclude.lock"):
        whole = [point for point in task.points if point.name not in failures]
        if not whole:
            raise CheckFailed(f"no point came to a network; {next(iter(failures.items()))}")
        models = {"dense": task.out / "models" / DENSE}
        write_bytes(models["dense"], (task.out / "runs" / whole[0].name / DENSE).read_bytes())
        scores: dict[str, Score] = {}
        for point in whole:
            found = Evaluation.read(task.out / "runs" / point.name / "evaluation.json")
            scores |= {score.name: score for score in found.scores}
            models |= {name: task.out / "models" / f"{name}.onnx" for name, _ in task.variants(point)}
        Evaluation(scores=list(scores.values())).write(task.out / "evaluation.json")
        bench = None
        if device is not None:
            bench = bench_once(models, task.out / "bench.json", device=device, pairs=pairs)
        sweep = _record(task, models, scores, failures, bench)
        sweep.write(task.out / "sweep.json")
    return sweep


def headline_of(sweep: Sweep) -> str | None:
    """The fastest of the networks whose validation accuracy is within a point of the best; None if none is timed."""
    timed = [(p.speedup, p.validation_accuracy, p.name) for p in sweep.points if p.speedup and p.validation_accuracy]
    best = max((accuracy for _, accuracy, _ in timed), default=0.0)
    return max(((speed, name) for speed, accuracy, name in timed if accuracy >= best - WITHIN), default=(0, None))[1]


def _record(
    task: Task,
    models: Mapping[str, Path],
    scores: Mapping[str, Score],
    failures: Mapping[str, str],
    bench: Bench | None,
) -> Sweep:
    from ..runtime.costs import count

    ratios = {one.variant: one for one in bench.comparisons} if bench else {}
    points = []
    for point in task.points:
        for name, energy in task.variants(point):
            settings = dict(point.settings) | ({} if energy is None else {ENERGY: energy})
            told = SweepPoint(name=name, run=point.name, settings=settings, failure=failures.get(point.name))
            if told.failure is None:
                costs, score, ratio = count(models[name]), scores[name], ratios.get(name)
                told = told.model_copy(
                    update={
                        "validation_accuracy": score.value,
                        "validation_low": score.low,
                        "validation_high": score.high,
                        "parameters": costs.parameters,
                        "macs": costs.macs,
                        "size_bytes": models[name].stat().st_size,
                        "speedup": ratio and ratio.ratio,
                        "speedup_low": ratio and ratio.low,
                        "speedup_high": ratio and ratio.high,
                    }
                )
            points.append(told)
    dense = count(models["dense"])
    grid = {key: list(values) for key, values in task.grid.items()}
    grid |= {ENERGY: list(task.energies)} if task.energies else {}
    return Sweep(recipe=task.recipe, grid=grid, dense_macs=dense.macs, dense_parameters=dense.parameters, points=points)
