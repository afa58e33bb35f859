"""Points taken from the queue until all are done, by this process or by several others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from ..errors import CheckFailed, DeviceError, RankfoldError
from ..terminal import Shown, bars
from . import point
from .grid import Task
from .point import Say
from .study import covers, opened, queue_missing, states

if TYPE_CHECKING:
    from optuna import Trial

    from ..train.data import Dataset

_POLL_S = 0.2


class _NotOursError(Exception):
    """A trial that this process cannot do: it fails, and whoever wants it queues it again."""


def work(task: Task, say: Say, alive: Callable[[], bool] = lambda: True) -> None:
    """Take points from the queue until all are done, also those of processes that died meanwhile."""
    import optuna

    from ..train.proximal import DivergedError

    study, began = opened(task), time.monotonic()
    first = states(task, study)["done"]
    loaded: dict[str, Dataset] = {}
    told: list[bool] = []  # that the trial under way has come to its end, here or by others who took us for dead

    def one(trial: Trial) -> float:
        try:
            return made(trial)
        except optuna.exceptions.UpdateFinishedTrialError:
            told.append(True)
            raise

    def made(trial: Trial) -> float:
        mine = next((p for p in task.points if p.name == trial.user_attrs.get("point")), None)
        if mine is None or not covers(task, trial.user_attrs):
            raise _NotOursError
        trial.set_user_attr("host", f"{socket.gethostname()} {os.getpid()}")
        try:
            accuracy = point.done(task, mine, loaded, say)
        except (CheckFailed, DivergedError) as error:
            trial.set_user_attr("failure", str(error))
            told.append(True)
            raise optuna.TrialPruned from error
        told.append(True)
        return accuracy

    while alive():
        queue_missing(task, study)
        now = states(task, study)
        done, left = now["done"], len(task.points) - now["done"]
        left_s = (time.monotonic() - began) / (done - first) * left if done > first else None
        say("points", done, len(task.points), left_s, f"{now['RUNNING']} under way" if now["RUNNING"] else "")
        if not left:
            return
        if not now["WAITING"]:
            time.sleep(min(1.0, task.heartbeat_s))
            continue
        told.clear()
        try:
            study.optimize(one, n_trials=1, catch=(_NotOursError,))
        except (ValueError, AssertionError, optuna.exceptions.UpdateFinishedTrialError):  # its ways to say so
            if not told:
                raise
            # else what we did lies in the point's folder for whoever is next


def run(task: Task, workers: int) -> None:
    """Do all points, in this process or in `workers` others; one of those that dies is made up for by the rest."""
    (task.out / "models").mkdir(parents=True, exist_ok=True)
    with bars() as new_bar:
        show = _shower(new_bar)
        if workers == 1:
            work(task, show)
        else:
            _run_beside(task, workers, show)


def _run_beside(task: Task, count: int, show: Say) -> None:
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe(duplex=False) for _ in range(count)]
    children = [context.Process(target=_child, args=(task, writer)) for _, writer in ends]
    failure: RankfoldError | None = None
    try:
        for child in children:
            child.start()
        for _, writer in ends:
            writer.close()
        readers = [reader for reader, _ in ends]
        while readers:
            ready = wait(readers, _POLL_S)
            for reader in [one for one in readers if one in ready]:
                try:
                    said = reader.recv()
                except EOFError:  # it has ended
                    readers.remove(reader)
                    continue
                if isinstance(said, RankfoldError):
                    failure = said
                else:
                    show(*said)
    finally:
        for child in children:
            if child.pid is not None:
                child.terminate()
                child.join()
    if failure is not None:
        raise failure
    done = states(task, opened(task))["done"]
    if done < len(task.points):
        raise DeviceError(
            f"every worker ended before its time, {done} of {len(task.points)} points are done; "
            "free memory or give fewer --workers, then give the same command"
        )


def _child(task: Task, writer: Connection) -> None:
    """A worker: it leaves Ctrl-C to the parent, is ended by it as if by Ctrl-C, and ends when that has died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is a child"

    def say(*said: object) -> None:
        try:
            writer.send(said)
        except BrokenPipeError:
            raise KeyboardInterrupt from None

    try:
        work(task, say, parent.is_alive)
    except RankfoldError as error:
        writer.send(error)
    except KeyboardInterrupt:
        sys.exit(1)


def _shower(new_bar: Callable[[str], Shown]) -> Say:
    shown: dict[str, Shown] = {}

    def show(name: str, done: int, total: int, left_s: float | None, text: str) -> None:
        if name not in shown:
            shown[name] = new_bar(name)
        shown[name].show(done, total, left_s, text)

    return show
