"""dense.onnx → compact.onnx, plan and parity: every pass in order, each one checked.

A step that claims to be exact is held to the parity bound; factorisation is lossy and reported. Nothing is
written when a check fails.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from .. import __version__
from ..errors import InputError
from ..files import write_bytes
from ..records import LayerTime, Parity, ParityCheck, Plan
from .choose import plan_by_energy
from .graphs import load, serialize
from .layers import layers_of
from .parity import BATCHES, Original, exact_check, lossy_check, not_comparable, original, require, with_one_bound
from .passes.canonicalize import canonicalize
from .passes.factorize import factorize, name_factors
from .passes.flush_denormals import flush_denormals
from .passes.fold_batchnorm import fold_batchnorm
from .passes.fold_channels import fold_channels
from .passes.rewrites import rewritten
from .passes.simplify import simplified

SIMPLIFY = "simplify"
# what onnxsim raises on graphs it cannot take, and our own word for a result that does not run
_SIMPLIFIER_ERRORS = (RuntimeError, ValueError, onnx.checker.ValidationError, InputError)


def shrink(
    dense: Path,
    compact: Path,
    *,
    form: str = "channel",
    energy: float = 1.0,
    tile: int = 1,
    parameters: int | None = None,
    keep: Collection[str] = (),
    table: Sequence[LayerTime] | None = None,
) -> tuple[Plan, Parity]:
    """Read `dense`, write `compact`, and return the plan (`choose.plan_by_energy`) with the checks that were made.

    Raises InputError for a bad model or option, CheckFailed when an exact step is not exact or `parameters` is
    infeasible; then `compact` is not touched.
    """
    model, source, originals = _opened(dense)
    checks = [*_fold_batchnorm(model, originals)]
    dense_macs = {layer.name: layer.macs for layer in layers_of(model)}
    groups = fold_channels(model, tile)
    checks += _exact(model, originals, "fold dead channels")
    plan = plan_by_energy(
        model,
        form=form,
        energy=energy,
        tile=tile,
        parameters=parameters,
        keep=keep,
        groups=groups,
        dense_macs=dense_macs,
        table=table,
    ).model_copy(update={"source_sha256": hashlib.sha256(source).hexdigest()})
    factorize(model, plan.layers)
    flush_denormals(model)
    rewritten = serialize(model)
    checks += [require(lossy_check(truth, rewritten, "factorise")) for truth in originals]
    _write(model, compact, checks, source, plan)
    return plan, Parity(checks=checks)


def carry_out(trained: Path, dense: Path, compact: Path, plan: Plan) -> Parity:
    """Write `compact` from a network that was trained in the plan's shapes: `trained`, as it left torch.

    Its factors get the names they have in every planned file, and the plan's exact rewrites are made. `dense` is the
    file that the plan is of. Raises CheckFailed when a step is not exact; then `compact` is not touched.
    """
    model, _, originals = _opened(trained)
    name_factors(model, plan.layers)
    checks = [*_fold_batchnorm(model, originals)]
    if plan.timing is not None and plan.timing.rewrites:
        rewritten(model, plan.timing.rewrites)
        checks += _exact(model, originals, "rewrite exactly")
    flush_denormals(model)
    _write(model, compact, checks, dense.read_bytes(), plan)
    return Parity(checks=checks)


def prepare_dense(dense: Path, target: Path | None = None) -> Parity:
    """The same hygiene without shrinking, for a fair baseline; written over `dense` unless `target` is given."""
    model, source, originals = _opened(dense)
    checks = [*_fold_batchnorm(model, originals)]
    flush_denormals(model)
    _write(model, target or dense, checks, source, None)
    return Parity(checks=checks)


def _opened(path: Path) -> tuple[ir.Model, bytes, list[Original]]:
    model = load(path)
    source = Path(path).read_bytes()
    try:
        originals = _originals(source)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    canonicalize(model)
    return model, source, originals


def _originals(model: bytes) -> list[Original]:
    return with_one_bound([original(model, batch, seed) for seed, batch in enumerate(BATCHES)])


def _fold_batchnorm(model: ir.Model, originals: list[Original]) -> list[ParityCheck]:
    fold_batchnorm(model)
    return _exact(model, originals, "fold BatchNormalization")


def _exact(model: ir.Model, originals: list[Original], what: str) -> list[ParityCheck]:
    rewritten = serialize(model)
    return [require(exact_check(truth, rewritten, what)) for truth in originals]


def _write(model: ir.Model, path: Path, checks: list[ParityCheck], source: bytes, plan: Plan | None) -> None:
    """Simplify if that is exact, add the metadata, write; appends the checks of the simplification."""
    originals = _originals(serialize(model))
    result, verdicts = _simplify(model, originals)
    checks += verdicts
    result.producer_name, result.producer_version = "rankfold", __version__
    result.metadata_props["rankfold.version"] = __version__
    result.metadata_props["rankfold.source_sha256"] = hashlib.sha256(source).hexdigest()
    if plan is not None:
        result.metadata_props["rankfold.plan"] = plan.model_dump_json()
    write_bytes(path, serialize(result))


def _simplify(model: ir.Model, originals: list[Original]) -> tuple[ir.Model, list[ParityCheck]]:
    """The simplified model with its checks; the model as it was, and the checks that say so, on failure."""
    try:
        result = simplified(model)
        rewritten = serialize(result)
        checks = [exact_check(truth, rewritten, SIMPLIFY) for truth in originals]
    except _SIMPLIFIER_ERRORS:
        checks = [not_comparable(truth, SIMPLIFY) for truth in originals]
        result = model
    if all(check.passed for check in checks):
        return result, checks
    return model, [check.model_copy(update={"what": f"{SIMPLIFY} (failed, not used)"}) for check in checks]
