"""Parity: outputs of a rewritten model against a float64 evaluation of the original (design: testing).

An exact rewrite may err by at most 4 times what float32 costs the original itself; a lossy one is reported,
never judged. Nothing is compared before shapes are, and NaN anywhere is a failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import CheckFailed, InputError
from ..records import ParityCheck
from .reference import evaluate
from .sessions import RUNTIME_ERRORS, one_line, session

EXACT_FACTOR = 4.0  # design §9: rewrites reorder sums, so allow a few times the original's own rounding
FLOOR = 1e-6  # about 8 float32 epsilons: below it a net of one layer would fail on luck
BATCHES = (1, 8)
# what onnx's reference evaluator raises for graphs that contradict themselves or operators it lacks
_EVALUATION_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)


@dataclass(frozen=True)
class Original:
    """What a model computes in truth: seeded inputs (float32), outputs in float64, its own float32 error."""

    inputs: dict[str, NDArray[np.float32]]
    outputs: list[NDArray]
    batch: int
    own_error: float

    @property
    def bound(self) -> float:
        """The largest relative error that still counts as an exact rewrite."""
        return max(EXACT_FACTOR * self.own_error, FLOOR)


def original(model: bytes, batch: int, seed: int = 0) -> Original:
    """Evaluate `model` on standard normal inputs, in float64 and in float32.

    Raises InputError when an input's size is unknown, or the model does not run or yields NaN.
    """
    proto = onnx.load_model_from_string(model)
    inputs = normal_inputs(proto, batch, np.random.default_rng(seed))
    try:
        truth = evaluate(proto, {name: numbers.astype(np.float64) for name, numbers in inputs.items()})
    except _EVALUATION_ERRORS as error:
        raise InputError(f"the model cannot be evaluated in float64: {one_line(error)}; check it") from error
    relative, _ = difference(run(model, inputs), truth)
    if not np.isfinite(relative):
        raise InputError("the model yields NaN, infinity or other shapes in float32 on normal inputs; check it")
    return Original(inputs, truth, batch, relative)


def exact_check(reference: Original, rewritten: bytes, what: str) -> ParityCheck:
    """Compare an exact rewrite with the original; `passed` says whether it is within the bound."""
    relative, absolute = difference(run(rewritten, reference.inputs), reference.outputs)
    bound = reference.bound
    return _check(what, reference.batch, relative, absolute, bound, passed=relative <= bound)


def lossy_check(reference: Original, rewritten: bytes, what: str) -> ParityCheck:
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


def difference(outputs: list[NDArray], truth: list[NDArray]) -> tuple[float, float]:
    """max|Δ| / max|truth| and max|Δ| over all outputs; infinite for NaN, other shapes, or no numbers at all."""
    if [output.shape for output in outputs] != [output.shape for output in truth]:
        return np.inf, np.inf
    if not outputs or not any(output.size for output in truth):
        return np.inf, np.inf
    worst_relative = worst = 0.0
    for output, true in zip(outputs, truth, strict=True):
        with np.errstate(invalid="ignore"):  # ∞ − ∞ is NaN, which is what it is judged as
            absolute = float(np.max(np.abs(output.astype(np.float64) - true), initial=0.0))
        scale = float(np.max(np.abs(true), initial=0.0))
        if not np.isfinite(absolute) or not np.isfinite(scale):
            return np.inf, np.inf
        worst = max(worst, absolute)
        worst_relative = max(worst_relative, absolute / scale if scale > 0 else absolute)
    return worst_relative, worst


def run(model: bytes, inputs: Mapping[str, NDArray]) -> list[NDArray]:
    """The model's outputs by ONNX Runtime in float32. Raises InputError when it cannot run."""
    try:
        outputs = session(model, "the model").run(None, dict(inputs))
    except RUNTIME_ERRORS as error:
        raise InputError(f"the model does not run: {one_line(error)}; check its inputs") from error
    return [np.asarray(output) for output in outputs]


def normal_inputs(proto: onnx.ModelProto, batch: int, generator: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Standard normal float32 arrays for every input; a symbolic first dimension becomes `batch`."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    return {
        value.name: generator.standard_normal(_shape(value, batch), dtype=np.float32)
        for value in proto.graph.input
        if value.name not in constants
    }


def _shape(value: onnx.ValueInfoProto, batch: int) -> list[int]:
    tensor = value.type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        raise InputError(f"input '{value.name}': expected float32, found another type; it cannot be run yet")
    shape = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
    unknown = [axis for axis, size in enumerate(shape) if size is None and axis > 0]
    if unknown:
        raise InputError(f"input '{value.name}': axis {unknown[0]} has no fixed size; export it with one")
    return [batch if size is None else size for size in shape]


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
