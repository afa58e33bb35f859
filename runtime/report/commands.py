"""The command lines that would make the same measurement and the same page again."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from ...records import Bench, TrainRecord


def reproduce(path: Path, bench: Bench, train: TrainRecord | None) -> list[str]:
    """Shell-quoted commands, to be run in the folder of the bench record at `path`.

    A run folder (it holds recipe.toml) begins with its training; `train` gives the seed.
    """
    folder = path.parent
    commands = []
    if train is not None and (folder / "recipe.toml").exists():
        commands += [f"rankfold train recipe.toml --seed {train.seed} --out ."]
        commands += ["rankfold export .", "rankfold evaluate ."]
    commands.append(shlex.join(_bench_words(path, bench)))
    commands.append(shlex.join(["rankfold", "report", "." if path.name == "bench.json" else path.name]))
    return commands


def _bench_words(path: Path, bench: Bench) -> list[str]:
    context = bench.context
    models = [_model_path(path.parent, variant.file) for variant in bench.variants]
    words = ["rankfold", "bench", *models, "--device", context.device, "--threads", str(context.threads)]
    words += ["--cores", ",".join(map(str, context.cores))] if context.cores else []
    words += ["--provider", context.provider] if context.provider != "CPUExecutionProvider" else []
    for key, value in sorted(context.session_config.items()):
        words += ["--session-config", f"{key}={value}"]
    if bench.pairs:
        first = bench.pairs[0]
        count = sum((pair.baseline, pair.variant) == (first.baseline, first.variant) for pair in bench.pairs)
        words += ["--pairs", str(count), "--seed", str(first.seed)]
    words += ["--rate", f"{bench.paced[0].rate_hz:g}"] if bench.paced else []
    words += ["--sustain", str(math.ceil(bench.sustained[0].moments[-1].at_s))] if bench.sustained else []
    words += ["--operators"] if bench.operators else []
    return [*words, "-o", path.name]


def _model_path(folder: Path, recorded: str) -> str:
    """The model's path as seen from `folder`, where it lies there; else as it was recorded."""
    name = Path(recorded).name
    return next((p for p in (name, f"models/{name}") if name and (folder / p).exists()), recorded)
