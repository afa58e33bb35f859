"""Any ONNX graph in, the same function in a smaller graph out: `rankfold fold`.

Hygiene (constants folded, Identity and Dropout gone, initialisers not listed as inputs, BatchNormalization in the
kernels, denormals flushed), then dead channels. Every step is exact and checked as such; nothing is written when
a check fails. The general simplifier stays out: it may change a foreign graph in ways that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedOpsetsPass

from .. import __version__
from ..errors import InputError, RankfoldError
from ..files import replacing_all, require_writable, sha256_of
from ..records import GroupDecision, LayerDecision, Parity, ParityCheck, Plan
from ..runtime import costs
from ..runtime.inputs import Given, has_open_batch, input_shapes
from ..runtime.onnxfile import read
from .footprint import total_bytes
from .graphs import is_large, load, serialize, write_into
from .layers import layers_of
from .opsets import Target, require_known_opset, retargeted
from .opsets import target as runtime_named
from .parity import BATCHES, NoReference, Original, exact_check, float32_original, original, require, with_one_bound
from .passes.canonicalize import canonicalize
from .passes.flush_denormals import flush_denormals
from .passes.fold_batchnorm import fold_batchnorm
from .passes.fold_channels import fold_channels
from .passes.fold_constants import fold_constants

# The float64 reference keeps every value it computes; with this a ResNet-50 at 224×224 folds in 1.3 GB.
_REFERENCE_BYTES = 1 << 29
_REFERENCE_MACS = 2e10  # some ten seconds in float64 on one core
_ROUNDS = 8  # of folding constants and shapes in turns; graphs of shape arithmetic need two or three


@dataclass
class _Case:
    """One model on its way: what it computes in truth, the checks so far, and a folder for large files."""

    originals: list[Original]
    folder: Path
    checks: list[ParityCheck] = field(default_factory=list)

    def content(self, model: ir.Model) -> bytes | Path:
        """What a session is made from: the file's bytes, or its path where it is too large for that."""
        if not is_large(model):
            return serialize(model)
        write_into(self.folder, "check.onnx", model)
        return self.folder / "check.onnx"

    def exact(self, model: ir.Model, what: str) -> None:
        """Hold the model as it is now against what it computed at first."""
        rewritten = self.content(model)
        self.checks += [require(exact_check(truth, rewritten, _against(truth, what))) for truth in self.originals]


def fold(
    source: Path,
    output: Path,
    *,
    tile: int = 1,
    target_ort: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    given: Given | None = None,
) -> tuple[Plan, Parity]:
    """Write `output` with its .plan.json and .parity.json: all of them, or none.

    `tile` rounds channel counts up, `target_ort` is the oldest runtime that must read the file, `shapes` or
    `given` say what open inputs are. Raises InputError for a model that is none or cannot be run, CheckFailed
    when a rewrite is not exact.
    """
    said = given or Given(shapes or {})
    with outputs(output) as (folder, names):
        return fold_into(folder, names, source, output.name, tile=tile, target_ort=target_ort, given=said)


@contextmanager
def outputs(path: Path):
    """A scratch folder and a list: the names written into the list move up beside `path` at the end, in order."""
    require_writable(path)
    names: list[str] = []
    with replacing_all(path.parent, names) as folder:
        yield folder, names


def record_names(name: str) -> tuple[str, str]:
    """`small.onnx` → `small.parity.json`, `small.plan.json`."""
    stem = name.removesuffix(".onnx")
    return f"{stem}.parity.json", f"{stem}.plan.json"


def fold_into(
    folder: Path,
    names: list[str],
    source: Path,
    name: str,
    *,
    tile: int = 1,
    target_ort: str | None = None,
    given: Given | None = None,
) -> tuple[Plan, Parity]:
    """`fold`, its files written into a scratch folder; `names` gets theirs, the model's last."""
    wanted = None if target_ort is None else runtime_named(target_ort)
    with naming(source):
        model, case = opened(source, given or Given(), folder)
        dense_macs = {layer.name: layer.macs for layer in layers_of(model)}
        groups = fold_channels(model, tile)
        model = finished(model, wanted)
        case.exact(model, "fold dead channels")
    plan = dense_plan(model, sha256_of(source), tile, groups, dense_macs, "folding changes no form")
    parity = Parity(checks=case.checks)
    names += written(folder, name, model, plan, parity)
    return plan, parity


def written(folder: Path, name: str, model: ir.Model, plan: Plan, parity: Parity) -> list[str]:
    """Write the model, stamped, with its records; returns the names, the model's last."""
    _stamp(model, plan)
    parity_name, plan_name = record_names(name)
    parity.write(folder / parity_name)
    plan.write(folder / plan_name)
    return [parity_name, plan_name, *write_into(folder, name, model)]


def opened(source: Path, given: Given, folder: Path) -> tuple[ir.Model, _Case]:
    """The model after hygiene, with BatchNormalization folded; what it computes was taken before."""
    model = load(source)
    require_known_opset(model)
    case = _Case(_originals(source, model, given), folder)
    tidy(model)
    fold_batchnorm(model)
    case.exact(model, "fold constants and BatchNormalization")
    return model, case


def tidy(model: ir.Model) -> None:
    """Canonical form with all constants folded, in place: shapes give constants, and constants shapes."""
    canonicalize(model)
    for _ in range(_ROUNDS):
        if not fold_constants(model):
            break
        canonicalize(model)


def finished(model: ir.Model, wanted: Target | None) -> ir.Model:
    """Without denormals and unused opsets, in the opset that a runtime needs."""
    flush_denormals(model)
    RemoveUnusedOpsetsPass()(model)
    return model if wanted is None else retargeted(model, wanted)


def _against(truth: Original, what: str) -> str:
    return what if truth.truth == "float64" else f"{what} (against float32: no float64 reference)"


# --- what the model computes in truth -----------------------------------------------------------------------


def _originals(source: Path, model: ir.Model, given: Given) -> list[Original]:
    proto = read(source)
    content = source if is_large(model) else proto.SerializeToString()
    sizes = batches(proto, given)
    return with_one_bound([_original(content, proto, batch, seed, given) for seed, batch in enumerate(sizes)])


def _original(content: bytes | Path, proto: onnx.ModelProto, batch: int, seed: int, given: Given) -> Original:
    if isinstance(content, bytes) and _is_cheap(proto, batch, given):
        try:
            return original(content, batch, seed, given)
        except NoReference:
            pass  # operators it lacks, or random ones: the runtime is its own witness
    return float32_original(content, batch, seed, given)


def batches(proto: onnx.ModelProto, given: Given) -> Sequence[int]:
    """Batches to check at: two where the batch is open, the second smaller for large networks."""
    if given.arrays is not None:
        first = next(iter(given.arrays.values()), None)
        return (1 if first is None or not first.ndim else max(len(first), 1),)
    first = next((shape[0] for shape in given.shapes.values() if shape), 1)
    if not has_open_batch(proto):
        return (first,)
    largest = first + BATCHES[1] - BATCHES[0]
    return (first, largest if _is_possible(proto, largest, given) else first + 1)


def _is_possible(proto: onnx.ModelProto, batch: int, given: Given) -> bool:
    """Whether a batch that nobody asked for is worth its time."""
    try:
        return _is_cheap(proto, batch, given)
    except InputError:  # too large
        return False


def _is_cheap(proto: onnx.ModelProto, batch: int, given: Given) -> bool:
    """Whether a float64 evaluation at this batch is a matter of seconds."""
    if given.arrays is not None:
        shapes = {name: list(array.shape) for name, array in given.arrays.items()}
    else:
        shapes = input_shapes(proto, batch, given.shapes)
    macs = costs.count(proto).macs
    return 2 * total_bytes(proto, shapes) <= _REFERENCE_BYTES and batch * (macs or 0) <= _REFERENCE_MACS


# --- what is written ----------------------------------------------------------------------------------------


def dense_plan(
    model: ir.Model,
    source_sha256: str,
    tile: int,
    groups: dict[str, GroupDecision],
    dense_macs: dict[str, int | None],
    reason: str,
) -> Plan:
    """The plan of a model whose layers all stay dense, for one reason."""
    layers = {
        layer.name: LayerDecision(
            form="dense",
            reason=reason,
            macs_dense=dense_macs.get(layer.name),
            macs=layer.macs,
        )
        for layer in layers_of(model)
    }
    return Plan(source_sha256=source_sha256, tile=tile, groups=groups, layers=layers)


def _stamp(model: ir.Model, plan: Plan) -> None:
    """Say in the file where it comes from."""
    model.producer_name, model.producer_version = "rankfold", __version__
    model.metadata_props["rankfold.version"] = __version__
    model.metadata_props["rankfold.source_sha256"] = plan.source_sha256 or ""
    model.metadata_props["rankfold.plan"] = plan.model_dump_json()


@contextmanager
def naming(source: Path):
    """Say which file an error is about."""
    try:
        yield
    except RankfoldError as error:
        if str(source) in str(error):
            raise
        raise type(error)(f"{source}: {error}") from error
