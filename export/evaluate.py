"""Top-1 accuracy of an ONNX model by ONNX Runtime, with its interval."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import sha256_of
from ..records import Score
from .sessions import RUNTIME_ERRORS, one_line, session

_BATCH = 64
_Z95 = 1.959963984540054  # standard normal quantile at 0.975


class Sliced(Protocol):
    """Float32 n×c×h×w that is read when it is sliced."""

    @property
    def shape(self) -> tuple[int, ...]:
        """n, c, h, w."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> NDArray[np.float32]: ...


def score(
    model: Path,
    inputs: NDArray[np.float32] | Sliced,
    labels: NDArray[np.integer],
    *,
    data: str,
    split: Literal["validation", "test"],
    seed: int | None,
    name: str,
    threads: int = 1,
) -> Score:
    """Top-1 accuracy on `inputs` (n×c×h×w, float32) against `labels` (n), with a 95 % Wilson interval.

    `data` says what it was measured on, `seed` which training run it was. Raises InputError, one line: no data,
    shapes that do not fit, outputs that are no class scores or hold NaN.
    """
    if len(inputs) == 0 or len(inputs) != len(labels):
        raise InputError(f"{data}: expected inputs with a label each, found {len(inputs)} and {len(labels)}")
    try:
        content = Path(model).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {model}: {error.strerror}; check the path") from error
    right = int(np.count_nonzero(_predictions(content, model, inputs, threads) == np.asarray(labels)))
    low, high = wilson(right, len(labels))
    return Score(
        model_sha256=sha256_of(Path(model)),
        name=name,
        data=data,
        split=split,
        metric="top-1",
        n=len(labels),
        value=right / len(labels),
        low=low,
        high=high,
        seed=seed,
    )


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927): never outside [0, 1], and right for shares near 1."""
    share, weight = right / n, _Z95**2 / n
    centre = (share + weight / 2) / (1 + weight)
    half = _Z95 / (1 + weight) * sqrt(share * (1 - share) / n + weight / (4 * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _predictions(content: bytes, model: Path, inputs: NDArray[np.float32] | Sliced, threads: int) -> NDArray:
    """The class with the largest score, for every input."""
    runner = session(content, str(model), threads)
    entries = runner.get_inputs()
    if len(entries) != 1:
        raise InputError(f"{model}: expected a model of one input, found {len(entries)}")
    _check_shape(model, entries[0].shape, inputs.shape)
    fixed = entries[0].shape[0]
    batch = fixed if isinstance(fixed, int) else _BATCH
    found = [
        _scores(runner, entries[0].name, part, model).argmax(axis=1)
        for part in (inputs[start : start + batch] for start in range(0, len(inputs), batch))
    ]
    return np.concatenate(found)


def _check_shape(model: Path, expected: list, found: tuple[int, ...]) -> None:
    fits = len(expected) == len(found) and all(
        not isinstance(want, int) or want == have for want, have in zip(expected[1:], found[1:], strict=True)
    )
    if not fits:
        raise InputError(f"{model}: expected inputs of shape {expected}, found {list(found)}; use the data it needs")


def _scores(runner, name: str, part: NDArray[np.float32], model: Path) -> NDArray:
    try:
        scores = np.asarray(runner.run(None, {name: np.ascontiguousarray(part, np.float32)})[0])
    except RUNTIME_ERRORS as error:
        raise InputError(f"{model}: it does not run: {one_line(error)}; check its inputs") from error
    if scores.ndim != 2 or len(scores) != len(part):
        raise InputError(f"{model}: expected scores of shape [{len(part)}, classes], found {list(scores.shape)}")
    if np.isnan(scores).any():
        raise InputError(f"{model}: expected class scores, found NaN; train or export it again")
    return scores
