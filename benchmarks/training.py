"""The trainings of a comparison, several at a time: each in a process of its own, resumed if it was killed."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any

from ..errors import DeviceError
from ..files import remove_unfinished
from ..terminal import bars
from .networks import Job

if TYPE_CHECKING:
    from multiprocessing.context import SpawnContext

_POLL_S = 0.2


def train_all(todo: list[Job], data: Path | None, count: int) -> None:
    """Train what is not done, `count` at a time with one thread each: faster than one after the other."""
    todo = [job for job in todo if not job.is_done()]
    if not todo:
        return
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, workers(count, context) as pool, bars() as new_bar:
        queue: Queue[tuple[str, int, int, float, str]] = manager.Queue()
        running = [pool.submit(_train_one, job, data, queue) for job in todo]
        shown: dict[str, Any] = {}
        try:
            while not all(future.done() for future in running):
                _show_one(queue, shown, new_bar)
            for future in as_completed(running):
                future.result()
        except BrokenProcessPool as error:
            raise DeviceError("a training process was killed; free memory, then give the same command") from error
        finally:
            ended(pool, [job.folder for job in todo])


def workers(count: int, context: SpawnContext) -> ProcessPoolExecutor:
    """Ctrl-C reaches the whole process group: the workers leave it to us."""
    return ProcessPoolExecutor(count, context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))


def ended(pool: ProcessPoolExecutor, folders: list[Path]) -> None:
    """End what still runs (after a failure or Ctrl-C; checkpoints stay), and what it was writing."""
    running = list((pool._processes or {}).values())  # Python 3.14 has terminate_workers(), nothing before
    pool.shutdown(cancel_futures=True, wait=False)
    for worker in running:
        worker.terminate()
        worker.join()
    for folder in folders:
        remove_unfinished(folder)


def _show_one(queue: Queue[tuple[str, int, int, float, str]], shown: dict[str, Any], new_bar: Callable) -> None:
    try:
        name, step, steps, left_s, text = queue.get(timeout=_POLL_S)
    except Empty:
        return
    bar = shown.setdefault(name, new_bar(name))
    bar.show(step, steps, left_s, text)


def _train_one(job: Job, data: Path | None, queue: Queue[tuple[str, int, int, float, str]]) -> None:
    """In a worker process: train, resuming a run that was killed."""
    from ..train import checkpoint
    from ..train import data as datasets
    from ..train.trainer import CHECKPOINT, RECORD, Progress, belongs, train

    def report(name: str, progress: Progress) -> None:
        if progress.step % 10 == 0 or progress.row is not None:
            queue.put((name, progress.step, progress.steps, progress.left_s, f"loss {progress.loss:.3f}"))

    path = job.folder / CHECKPOINT
    unfinished = path.exists() and not (job.folder / RECORD).exists()
    dataset = datasets.load(job.recipe.data, data)
    name = f"{job.name}, seed {job.seed}" if job.seed else job.name
    train(
        job.recipe,
        dataset,
        job.folder,
        seed=job.seed,
        threads=1,
        resume=unfinished and belongs(checkpoint.load(path).facts, job.recipe, job.seed),
        on_progress=partial(report, name),
    )
