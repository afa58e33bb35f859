"""A point of a sweep: trained, exported, scored. Its folder is locked meanwhile, so that a process which was taken for
dead and was only slow is waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..files import digest, locked, sha256_of, write_bytes
from ..records import Evaluation, Made, Score, TrainRecord
from ..stages import COMPACT, export_run, score_models
from .grid import Point, Task

if TYPE_CHECKING:
    from ..train.data import Dataset

Say = Callable[[str, int, int, float | None, str], None]
BESIDE = ("plan.json", "parity.json", "train.json")


def done(task: Task, point: Point, loaded: dict[str, Dataset], say: Say) -> float:
    """Train, export at every energy, score on the validation split; what is there already is kept."""
    from ..train import data as datasets

    folder = task.out / "runs" / point.name
    with locked(folder / "lock"):
        key = point.recipe.data.model_dump_json()
        dataset = loaded[key] = loaded.get(key) or datasets.load(point.recipe.data, task.data)
        record = _trained(task, point, folder, dataset, say)
        scores = []
        for name, energy in task.variants(point):
            model = task.out / "models" / f"{name}.onnx"
            made = Made(config_hash=_hash(record, energy, task.tile), parameters=None)
            path = model.with_name(f"{name}.made.json")
            if not (path.exists() and model.exists() and Made.read(path) == made):
                export_run(folder, energy=energy, tile=task.tile)
                path.unlink(missing_ok=True)
                for one in BESIDE:
                    write_bytes(model.with_name(f"{name}.{one}"), (folder / one).read_bytes())
                write_bytes(model, (folder / COMPACT).read_bytes())
                made.write(path)
            scores += _score(folder, name, model, dataset, point.seed)
        Evaluation(scores=scores).write(folder / "evaluation.json")
        return record.validation_accuracy


def _trained(task: Task, point: Point, folder: Path, dataset: Dataset, say: Say) -> TrainRecord:
    from ..train.trainer import RECORD, Progress, train

    if (folder / RECORD).exists():
        record = TrainRecord.read(folder / RECORD)
        if (record.recipe, record.seed) != (point.recipe, point.seed):
            raise InputError(f"{folder} holds a run of another recipe or seed; choose another --out")
        return record

    def show(now: Progress) -> None:
        say(point.name, now.step, now.steps, now.left_s, f"loss {now.loss:.3f}")

    return train(point.recipe, dataset, folder, seed=point.seed, threads=task.threads, resume=True, on_progress=show)


def _hash(record: TrainRecord, energy: float | None, tile: int | None) -> str:
    told = [record.recipe.model_dump(mode="json", exclude_defaults=True), record.seed, energy, tile]
    return digest(told)


def _score(folder: Path, name: str, model: Path, dataset: Dataset, seed: int) -> list[Score]:
    path, sha256 = folder / "evaluation.json", sha256_of(model)
    known = Evaluation.read(path).scores if path.exists() else []
    kept = [score for score in known if (score.name, score.model_sha256) == (name, sha256)]
    return kept or score_models({name: model}, dataset, "validation", seed)
