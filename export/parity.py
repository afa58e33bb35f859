"""Parity: outputs of a rewritten model against a float64 evaluation of the original (design: testing).

An exact rewrite may err by at most 4 times what float32 costs the original itself; a lossy one is reported,
never judged. Nothing is compared before shapes are, and NaN anywhere is a failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import CheckFailed, InputError
from ..records import ParityCheck
from ..runtime.agreement import difference
from ..runtime.inputs import Given, make_inputs
from .reference import EVALUATION_ERRORS, evaluate, wide
from .sessions import RUNTIME_ERRORS, InferenceSession, one_line, session

EXACT_FACTOR = 4.0  # design §9: rewrites reorder sums, so allow a few times the original's own rounding
FLOOR = 1e-6  # about 8 float32 epsilons: below it a net of one layer would fail on luck
BATCHES = (1, 8)
# above it 4 times the own error would pass anything; float16 networks stay below 1e-2
MAX_OWN_ERROR = 0.03


@dataclass(frozen=True)
class Original:
    """What a model computes in truth: seeded inputs, outputs in float64, its own float32 error.

    `truth` says against what an error is measured: the float64 evaluation, or the runtime's float32.
    """

    inputs: dict[str, NDArray]
    outputs: list[NDArray]
    batch: int
    own_error: float
    truth: Literal["float64", "float32"] = "float64"

    @property
    def bound(self) -> float:
        """The largest relative error that still counts as an exact rewrite."""
        return max(EXACT_FACTOR * self.own_error, FLOOR)


def with_one_bound(originals: Sequence[Original]) -> list[Original]:
    """The same, each with the largest own error of all: norms of nearly constant channels err by luck of one input."""
    worst = max((one.own_error for one in originals), default=0.0)
    return [replace(one, own_error=worst) for one in originals]


class NoReference(InputError):
    """The model cannot be held against a float64 evaluation of itself."""


def original(model: bytes, batch: int, seed: int = 0, given: Given | None = None) -> Original:
    """Evaluate `model` in float64 and in float32, on seeded inputs or on `given` ones.

    Raises InputError when an input's size is unknown, or the model does not run or yields NaN; NoReference when
    the reference evaluator cannot take it, or float32 is too far from it to judge a rewrite.
    """
    proto = onnx.load_model_from_string(model)
    inputs = make_inputs(proto, batch, np.random.default_rng(seed), given)
    try:
        truth = evaluate(proto, {name: wide(numbers) for name, numbers in inputs.items()})
    except EVALUATION_ERRORS as error:
        raise NoReference(f"the model cannot be evaluated in float64: {one_line(error)}; check it") from error
    relative, _ = difference(run(model, inputs), truth)
    _require_finite(relative)
    if relative > MAX_OWN_ERROR:
        raise NoReference(f"the model's float32 outputs differ from float64 by {relative:.2g}; check it")
    return Original(inputs, truth, batch, relative)


def float32_original(model: bytes | Path, batch: int, seed: int = 0, given: Given | None = None) -> Original:
    """The same with ONNX Runtime as its own witness, for models that have no float64 reference.

    The truth is the graph run as written; its own error is what the runtime's own rewrites of it change.
    Raises InputError, also when two runs differ: then no rewrite can be judged.
    """
    proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else _without_data(model)
    inputs = make_inputs(proto, batch, np.random.default_rng(seed), given)
    witness = session(model, "the model", optimized=False)
    truth = outputs_of(witness, inputs)
    if not identical(outputs_of(witness, inputs), truth):
        raise InputError("the model yields other outputs at every run; a rewrite of it cannot be checked")
    relative, _ = difference(run(model, inputs), truth)
    _require_finite(relative)
    if relative > MAX_OWN_ERROR:
        raise InputError(f"ONNX Runtime's own rewrites change the outputs by {relative:.2g}; it cannot be checked")
    return Original(inputs, truth, batch, relative, truth="float32")


def exact_check(reference: Original, rewritten: bytes | Path, what: str) -> ParityCheck:
    """Compare an exact rewrite with the original; `passed` says whether it is within the bound."""
    relative, absolute = difference(run(rewritten, reference.inputs), reference.outputs)
    bound = reference.bound
    return _check(what, reference.batch, relative, absolute, bound, passed=relative <= bound)


def lossy_check(reference: Original, rewritten: bytes | Path, what: str) -> ParityCheck:
    """Report the error of a lossy step; it passes as long as shapes agree and no output is NaN."""
    relative, absolute = difference(run(rewritten, reference.inputs), reference.outputs)
    return _check(what, reference.batch, relative, absolute, None, passed=bool(np.isfinite(relative)))


def not_comparable(reference: Original, what: str) -> ParityCheck:
    """The failed check of a rewrite that yielded no outputs at all."""
    return _check(what, reference.batch, np.inf, np.inf, reference.bound, passed=False)


def require(check: ParityCheck) -> ParityCheck:
    """The check, if it passed; else CheckFailed."""
    if not check.passed:
        bound = "finite outputs of the same shape" if check.bound is None else f"at most {check.bound:.2g}"
        raise CheckFailed(
            f"{check.what}, batch {check.batch}: expected a relative error of {bound}, found "
            f"{check.relative:.2g}; nothing was written, please report the model"
        )
    return check


def run(model: bytes | Path, inputs: Mapping[str, NDArray]) -> list[NDArray]:
    """The model's outputs by ONNX Runtime. Raises InputError when it cannot run, or yields more than tensors."""
    return outputs_of(session(model, "the model"), inputs)


def outputs_of(runner: InferenceSession, inputs: Mapping[str, NDArray]) -> list[NDArray]:
    """A session's outputs, one array each. Raises InputError as `run`."""
    try:
        outputs = runner.run(None, dict(inputs))
    except RUNTIME_ERRORS as error:
        raise InputError(f"the model does not run: {one_line(error)}; check its inputs") from error
    except (ValueError, TypeError) as error:  # the binding's own, before the runtime sees the inputs
        raise InputError(f"the model does not take its inputs: {one_line(error)}; check them") from error
    if any(not isinstance(output, np.ndarray) or output.dtype.kind not in "fiub" for output in outputs):
        raise InputError("the model yields sequences, maps or text; only tensors of numbers can be compared")
    return [np.asarray(output) for output in outputs]


def _require_finite(relative: float) -> None:
    if not np.isfinite(relative):
        raise InputError("the model yields NaN, infinity or other shapes in float32 on normal inputs; check it")


def identical(outputs: list[NDArray], others: list[NDArray]) -> bool:
    """Whether the same numbers are in both, NaN for NaN."""
    return all(np.array_equal(one, other, equal_nan=True) for one, other in zip(outputs, others, strict=True))


def _without_data(path: Path) -> onnx.ModelProto:
    return onnx.load_model(str(path), format="protobuf", load_external_data=False)


def _check(
    what: str, batch: int, relative: float, absolute: float, bound: float | None, *, passed: bool
) -> ParityCheck:
    # records hold finite numbers only: an infinite error (other shapes, NaN) is the largest float
    largest = float(np.finfo(np.float64).max)
    return ParityCheck(
        what=what,
        batch=batch,
        relative=min(relative, largest),
        absolute=min(absolute, largest),
        bound=bound,
        passed=passed,
    )
