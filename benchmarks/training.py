"""The trainings of a comparison, several at a time: each in a process of its own, resumed if it was killed."""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import DeviceError
from ..files import remove_unfinished
from ..terminal import bars
from .networks import Job

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

_POLL_S = 0.2
Item = TypeVar("Item")
Result = TypeVar("Result")
Told = Queue[tuple[str, int, int, float, str]]


def train_all(todo: list[Job], data: Path | None, count: int) -> None:
    """Train what is not done, `count` at a time with one thread each: faster than one after the other."""
    todo = [job for job in todo if not job.is_done()]
    if not todo:
        return
    try:
        for future in list(side_by_side(partial(_train_one, data), todo, [job.folder for job in todo], count)):
            future.result()
    except BrokenProcessPool as error:
        raise DeviceError("a training process was killed; free memory, then give the same command") from error


def side_by_side(
    work: Callable[[Item, Told], Result],
    todo: Sequence[Item],
    folders: Sequence[Path],
    count: int,
    until: float = math.inf,
) -> Iterator[Future[Result]]:
    """`work(item, told)` in processes, `count` at a time, as they end; what has not ended `until` then is ended.

    They put into `told` what to show: a name, steps done, steps, seconds left and a text. `folders` are theirs.
    """
    context = forking()
    with context.Manager() as manager, _workers(count, context) as pool, bars() as new_bar:
        told: Told = manager.Queue()
        running = {pool.submit(work, item, told) for item in todo}
        shown: dict[str, Any] = {}
        try:
            while running and time.monotonic() < until:
                _show_one(told, shown, new_bar)
                done = {future for future in running if future.done()}
                running -= done
                yield from done
        finally:
            _end(pool, folders, is_idle=not running)


def forking() -> ForkServerContext:
    """Processes forked from one that has imported torch, and done nothing with it: each would take seconds to do so."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rankfold.train.trainer", "torch._dynamo"])  # the latter: what an optimiser imports
    return context


def _workers(count: int, context: ForkServerContext) -> ProcessPoolExecutor:
    """Ctrl-C reaches the whole process group: the workers leave it to us."""
    return ProcessPoolExecutor(count, context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))


def _end(pool: ProcessPoolExecutor, folders: Sequence[Path], *, is_idle: bool) -> None:
    """End what still runs (after a failure or Ctrl-C; checkpoints stay), and what it was writing."""
    running = [] if is_idle else list((pool._processes or {}).values())  # Python 3.14 has terminate_workers()
    pool.shutdown(cancel_futures=True, wait=is_idle)
    for worker in running:
        worker.terminate()
        worker.join()
    for folder in folders:
        remove_unfinished(folder)


def _show_one(queue: Told, shown: dict[str, Any], new_bar: Callable) -> None:
    try:
        name, step, steps, left_s, text = queue.get(timeout=_POLL_S)
    except Empty:
        return
    if name not in shown:
        shown[name] = new_bar(name)
    shown[name].show(step, steps, left_s, text)


def _train_one(data: Path | None, job: Job, queue: Told) -> None:
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
