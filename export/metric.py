"""How good a model is, by what there is to judge it: labels, an original model, or a command of the user's."""

from __future__ import annotations

import math
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..devices.transport import Transport, load_model, outputs
from ..errors import CheckFailed, InputError
from ..files import sha256_of
from ..records import ModelScore
from ..runtime import costs
from ..runtime.inputs import write_arrays
from ..runtime.serving import told
from ..runtime.turns import Options
from .calibration import Feed, Preprocess, Samples, load
from .evaluate import wilson
from .sessions import RUNTIME_ERRORS, one_line, session

_BATCH = 32
MODEL = "{model}"


def on_data(
    model: Path, data: Path, original: Path | None, how: Preprocess, transport: Transport | None = None
) -> ModelScore:
    """Top-1 accuracy where the data has labels, else agreement with `original`; the model runs on a board if given."""
    proto = costs.load(model)
    samples = load(data, proto, how)
    if original is not None:
        costs.load(original)
        return agreement(model, original, samples, transport=transport)
    if samples.labels is None:
        raise InputError(f"{data}: it has no labels; give --reference ORIGINAL.onnx to measure agreement with it")
    return top1(model, samples, transport=transport)


def top1(model: Path, samples: Samples, threads: int = 1, transport: Transport | None = None) -> ModelScore:
    """Share of labels that the largest class score names, with a 95 % Wilson interval."""
    labels = samples.labels
    assert labels is not None, "top-1 accuracy needs labels"
    right = sum(
        int(np.count_nonzero(_classes(model, found) == labels[part]))
        for found, part in _outputs(model, samples, threads, transport)
    )
    return _share(model, samples, "top-1", right)


def agreement(
    model: Path, original: Path, samples: Samples, threads: int = 1, transport: Transport | None = None
) -> ModelScore:
    """How far a model does what the original does: same top class, or 1 − ‖Δ‖₂/‖y‖₂ for other outputs."""
    same, off, size, classes = 0, 0.0, 0.0, True
    pairs = zip(_outputs(model, samples, threads, transport), _outputs(original, samples, threads), strict=True)
    for (found, _), (wanted, _) in pairs:
        if [one.shape for one in found] != [one.shape for one in wanted]:
            raise InputError(f"{model}: its outputs have other shapes than those of {original}; compare like with like")
        classes = classes and wanted[0].ndim == 2 and len(wanted) == 1
        if classes:
            same += int(np.count_nonzero(found[0].argmax(axis=1) == wanted[0].argmax(axis=1)))
        for one, other in zip(found, wanted, strict=True):
            off += float(np.sum(np.square(one.astype(np.float64) - other)))
            size += float(np.sum(np.square(other.astype(np.float64))))
    reference = sha256_of(original)
    if classes:
        return _share(model, samples, "top-1 agreement with the original", same, reference)
    value = 1 - math.sqrt(off / size) if size else float(off == 0)
    return _score(model, samples.name, "output agreement with the original (1 − ‖Δ‖/‖y‖)", value, reference=reference)


def by_command(command: str, model: Path, limit_s: float) -> ModelScore:
    """The number on the last line that a command prints, higher is better; `{model}` becomes the model's path.

    Words are split as a shell would (shlex), but no shell runs. InputError when it cannot be started or prints
    no number; CheckFailed when it fails.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"--metric {command[:60]!r}: {error}; check its quotes") from error
    if not words or not any(MODEL in word for word in words):
        raise InputError(f"--metric {command[:60]!r}: expected a command with {MODEL} in it")
    argv = [word.replace(MODEL, str(model)) for word in words]
    return _score(model, argv[0], f"command: {command}", _last_number(_run(argv, limit_s), argv[0]))


def _run(argv: list[str], limit_s: float) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=limit_s, check=False)
    except OSError as error:
        raise InputError(f"--metric: cannot start {argv[0]}: {error.strerror or error}; check the path") from error
    except ValueError as error:  # a zero byte in a word
        raise InputError(f"--metric: cannot start {argv[0]!r}: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(f"--metric: {argv[0]} gave no number within {limit_s:g} s; raise --limit-s") from error
    if done.returncode != 0:
        raise CheckFailed(f"--metric: {argv[0]} ended with status {done.returncode}: {_last_line(done.stderr)}")
    return done.stdout


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it printed nothing"


def _last_number(text: str, command: str) -> float:
    last = _last_line(text)
    try:
        number = float(last)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"--metric: expected a number on the last line of {command}, found {last[:80]!r}")
    return number


def _outputs(
    model: Path, samples: Samples, threads: int, transport: Transport | None = None
) -> Iterator[tuple[list[NDArray], slice]]:
    """The model's outputs, batch by batch; one at a time where its batch is fixed at one."""
    runner = session(Path(model), str(model), threads)
    fixed = [entry.shape[0] for entry in runner.get_inputs() if entry.shape and isinstance(entry.shape[0], int)]
    batch = fixed[0] if fixed else _BATCH
    with _runs(runner, model, threads, transport) as run:
        for feed, part in samples.batches(batch):
            missing = batch - (part.stop - part.start) if fixed else 0
            found = _run_once(run, _filled(feed, missing), model)
            yield [output[: part.stop - part.start] if output.ndim else output for output in found], part


@contextmanager
def _runs(
    runner: Any, model: Path, threads: int, transport: Transport | None
) -> Iterator[Callable[[Feed], list[NDArray]]]:
    """A function that runs the model here, or in one session on a board; inputs are placed there by their content."""
    if transport is None:
        yield lambda feed: runner.run(None, feed)
        return
    with transport.launch() as process, TemporaryDirectory(prefix="rankfold-") as folder:
        inputs = Path(folder) / "inputs.npz"
        load_model(process, {"model": transport.place(model), **told(transport, Options(threads=threads), [])})

        def run(feed: Feed) -> list[NDArray]:
            write_arrays(inputs, feed)
            return outputs(process, transport.place(inputs))

        yield run


def _filled(feed: Feed, missing: int) -> Feed:
    """The last batch of a fixed size, filled up with its last input."""
    if not missing:
        return feed
    return {name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for name, array in feed.items()}


def _run_once(run: Callable[[Feed], list[NDArray]], feed: Feed, model: Path) -> list[NDArray]:
    try:
        found = run(feed)
    except (*RUNTIME_ERRORS, ValueError, TypeError) as error:
        raise InputError(f"{model}: it does not run: {one_line(error)}; check its inputs") from error
    if any(not isinstance(one, np.ndarray) or one.dtype.kind not in "fiub" for one in found):
        raise InputError(f"{model}: expected tensors of numbers as outputs; use --metric for anything else")
    if any(one.dtype.kind == "f" and np.isnan(one).any() for one in found):
        raise InputError(f"{model}: expected numbers, found NaN in its outputs; train or export it again")
    return found


def _classes(model: Path, found: list[NDArray]) -> NDArray:
    if found[0].ndim != 2:
        shape = list(found[0].shape)
        raise InputError(f"{model}: expected class scores n×classes, found {shape}; use --metric for anything else")
    return found[0].argmax(axis=1)


def _share(model: Path, samples: Samples, metric: str, right: int, reference: str | None = None) -> ModelScore:
    low, high = wilson(right, samples.count)
    share = right / samples.count
    return _score(model, samples.name, metric, share, n=samples.count, low=low, high=high, reference=reference)


def _score(
    model: Path,
    data: str,
    metric: str,
    value: float,
    *,
    n: int | None = None,
    low: float | None = None,
    high: float | None = None,
    reference: str | None = None,
) -> ModelScore:
    return ModelScore(
        model_sha256=sha256_of(model),
        data=data,
        metric=metric,
        n=n,
        value=value,
        low=low,
        high=high,
        reference_sha256=reference,
    )
