"""Optuna's study as a queue of points.

A point is queued as long as no trial of the study has it. A process that has one says every few seconds that it lives
(Optuna's heartbeat); where it falls silent its trial counts as failed, and the point is queued again.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files import locked
from ..records import Setting
from .grid import Task

if TYPE_CHECKING:
    from optuna import Study

_BUSY_S = 60  # that SQLite waits for another process's transaction


def opened(task: Task) -> Study:
    """The study of this sweep, made where there is none. Raises InputError for the study of another recipe."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    local = f"sqlite:///{task.out.resolve() / 'study.db'}"
    patience = {} if task.storage else {"connect_args": {"timeout": _BUSY_S}}
    told = task.base.model_dump(mode="json", exclude_defaults=True)
    try:
        with locked(task.out / "queue.lock"), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = optuna.storages.RDBStorage(
                task.storage or local, engine_kwargs=patience, heartbeat_interval=task.heartbeat_s
            )
            sampler = optuna.samplers.RandomSampler()  # never asked: every trial comes from the queue
            study = optuna.create_study(
                storage=storage,
                sampler=sampler,
                study_name=task.out.resolve().name,
                direction="maximize",
                load_if_exists=True,
            )
            if study.user_attrs.get("recipe", told) != told:
                raise InputError(f"{task.out} is a sweep of another recipe; choose another --out")
            study.set_user_attr("recipe", told)
    except (SQLAlchemyError, ImportError) as error:
        said = str(error).splitlines()[0][:120]
        raise InputError(f"cannot open the sweep's study: {said}; check --storage and --out") from error
    return study


def queue_missing(task: Task, study: Study) -> None:
    """A waiting trial for every point that no trial has, after those of processes that fell silent have failed."""
    import optuna
    from optuna.trial import TrialState

    with locked(task.out / "queue.lock"), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
        silent_since = datetime.now() - timedelta(seconds=2 * task.heartbeat_s)
        taken: set[str] = set()
        for trial in study.get_trials(deepcopy=False):
            began = trial.datetime_start
            if trial.state is TrialState.RUNNING and "host" not in trial.user_attrs and began and began < silent_since:
                # killed before its first heartbeat; or so slow that it has only now ended by itself
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            elif trial.state is not TrialState.FAIL and covers(task, trial.user_attrs):
                taken.add(trial.user_attrs["point"])
        for point in task.points:
            if point.name not in taken:
                distributions = {key: _distribution(task.grid[key]) for key in point.settings}
                told = {"point": point.name, "energies": list(task.energies)}
                trial = optuna.create_trial(
                    state=TrialState.WAITING,
                    params=dict(point.settings),
                    distributions=distributions,
                    user_attrs=told,
                )
                try:
                    study.add_trial(trial)
                except ValueError as error:
                    said = f"{task.out}: its study was begun with other values of a key of words ({error})"
                    raise InputError(f"{said}; choose another --out") from error


def covers(task: Task, told: Mapping[str, Any]) -> bool:
    """Whether a trial's attributes are of a point, with all energies that are wanted."""
    return set(task.energies) <= set(told.get("energies", [])) and "point" in told


def _distribution(values: Sequence[Setting]) -> Any:
    """For Optuna's own views of the study; a range of numbers may grow from one command to the next."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(values):
        return FloatDistribution(min(numbers), max(numbers))
    return CategoricalDistribution(list(values))


def states(task: Task, study: Study) -> Counter[str]:
    """How many of the sweep's points are done, and how many trials run and wait."""
    mine = {point.name for point in task.points}
    trials = [t for t in study.get_trials(deepcopy=False) if t.user_attrs.get("point") in mine]
    found = Counter(trial.state.name for trial in trials)
    ended = [t.user_attrs for t in trials if t.state.name in ("COMPLETE", "PRUNED") and covers(task, t.user_attrs)]
    found["done"] = len({told["point"] for told in ended})
    return found
