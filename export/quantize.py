"""Static int8 quantisation of any ONNX file by ONNX Runtime's own tool, after folding: `rankfold quantize`.

Format QDQ, weights int8 a channel, activations uint8 a tensor, ranges from calibration data by the method that damages
least. CPUs with AVX2 or AVX-512 but without VNNI add products in 16 bits, which overflow: there weights keep 7 bits
(`reduce_range`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto

from ..errors import InputError
from ..files import sha256_of
from ..records import Damage, Parity, Quantized, TriedRanges
from ..runtime.inputs import Given
from ..runtime.latency import Stopwatch
from .calibration import Samples, every
from .damage import damage_of
from .fold import dense_plan, finished, naming, opened, written
from .graphs import is_large
from .judge import LEAST
from .layers import layers_of, require_known
from .opsets import target as runtime_named
from .parity import lossy_check, require
from .passes.equalize import equalize, pairs_of
from .passes.fold_channels import fold_channels
from .precision import Make, by_damage, by_time
from .ranges import METHODS, Ranges, tool_errors
from .reporting import Report, silent
from .walk import Walk

LAYERS = ("Conv", "Gemm", "MatMul")
# Relu and Clip vanish in the ranges of the layer before them; an Add of two branches keeps the data in int8: on an
# AVX-512 CPU without VNNI a ResNet-20 was 0.977 times as fast as float without the three, 1.015 without Add, then 1.056
OPERATORS = (*LAYERS, "Relu", "Clip", "Add")
_NARROW = ("avx2", "avx512f")  # multiply-add pairs of 8-bit products into saturating 16 bits
_WIDE = ("avx_vnni", "avx512_vnni", "amx_int8")
_LEAST_OPSET = 13  # of DequantizeLinear by channels


def int8_name(name: str) -> str:
    """`small.onnx` → `small.int8.onnx`."""
    return f"{name.removesuffix('.onnx')}.int8.onnx"


def needs_reduced_range(isa: Collection[str]) -> bool:
    """Whether a CPU adds int8 products in 16 bits."""
    return any(name in isa for name in _NARROW) and not any(name in isa for name in _WIDE)


@dataclass(frozen=True)
class Int8:
    """How to quantise: 7 or 8 bits of weights, by one of `ranges.METHODS` (None: the one of least damage).

    Float stay the layers of `keep`; with a `watch`, on a device of that name, those that are faster so; and so many
    that the outputs' error is at most `damage`.
    """

    reduce_range: bool
    method: str | None = None
    keep: Sequence[str] = ()
    damage: float | None = None
    watch: Stopwatch | None = None
    device: str = "host"

    def __post_init__(self) -> None:
        if self.damage is not None and not 0 < self.damage < 1:
            raise InputError(f"--damage {self.damage}: expected a share of the outputs' variance between 0 and 1")
        if self.method is not None and self.method not in METHODS:
            raise InputError(f"--method {self.method}: expected one of {', '.join(METHODS)}")

    @property
    def reason(self) -> str:
        """Of a quantised layer, in a plan."""
        return f"int8 a channel, {7 if self.reduce_range else 8} bits"


def quantize_into(
    folder: Path,
    source: Path,
    name: str,
    *,
    samples_for: Callable[[onnx.ModelProto], Samples],
    int8: Int8,
    tile: int = 1,
    target_ort: str | None = None,
    given: Given | None = None,
    report: Report = silent,
) -> list[str]:
    """Fold and quantise; the model and its records in a scratch folder, the model's name last. `samples_for` the float
    model are its calibration inputs.

    Raises InputError for models and data that cannot be used, and for models that are quantised already.
    """
    wanted = None if target_ort is None else runtime_named(target_ort)
    with naming(source):
        model, case = opened(source, given or Given(), folder)
        dense_macs = {layer.name: layer.macs for layer in layers_of(model)}
        groups = fold_channels(model, tile)
        model = finished(model, wanted)
        case.exact(model, "fold dead channels")
        samples = samples_for(ir.to_proto(model))
        small, record, damage, floats = quantized(model, samples, int8, folder, case.exact, report)
        plan = dense_plan(model, sha256_of(source), tile, groups, dense_macs, int8.reason)
        layers = {
            name: layer.model_copy(update={"reason": floats.get(name, layer.reason)})
            for name, layer in plan.layers.items()
        }
        plan = plan.model_copy(update={"quantized": record, "layers": layers})
        content = case.content(small)
        checks = [*case.checks, *(require(lossy_check(truth, content, "quantise")) for truth in case.originals)]
    return written(folder, name, small, plan, Parity(checks=checks, damage=damage))


def require_quantisable(model: ir.Model) -> None:
    """Raises InputError for a model that the tool cannot take."""
    if any(node.op_type in ("QuantizeLinear", "QLinearConv") for node in model.graph):
        raise InputError("the model is quantised already; give the float model")
    if is_large(model):
        raise InputError("the model is larger than 2 GB; quantize takes models that fit one ONNX file")


def quantized(
    model: ir.Model,
    samples: Samples,
    int8: Int8,
    folder: Path,
    exact: Callable[[ir.Model, str], None],
    report: Report = silent,
) -> tuple[ir.Model, Quantized, Damage, dict[str, str]]:
    """A folded float model as int8, how that was done, what it did to the outputs, and why layers stayed float.

    Half of the inputs give the ranges, the other half judges, where there are enough; else all do both. `exact(model,
    what)` raises where a float model does not do the same as the one given.
    """
    require_quantisable(model)
    layers = {layer.name: layer for layer in layers_of(model)}
    require_known(int8.keep, layers)
    original = ir.to_proto(_per_channel(model))
    samples = Walk(original, samples).samples  # in whole batches
    are_apart = samples.count >= 2 * LEAST
    seen, judged_on = (every(samples, 2, 0), every(samples, 2, 1)) if are_apart else (samples, samples)

    def judged(small: onnx.ModelProto) -> Damage:
        return damage_of(original, small, judged_on, judged_on.count)

    def attempt(proto: onnx.ModelProto, ranges: Ranges, method: str, equalized: Sequence[str] = ()) -> _Attempt:
        make = partial(with_ranges, proto, ranges.by(method), int8)
        return _Attempt(make, method, equalized, judged(make(int8.keep)))

    ranges = Ranges(original, seen, OPERATORS, folder, report)
    methods = METHODS if int8.method is None else (int8.method,)
    tried: list[_Attempt] = []
    for number, method in enumerate(methods):
        report("trying ranges", number, len(methods))
        tried.append(attempt(original, ranges, method))
    report("trying ranges", len(methods), len(methods))
    even, pairs = _equalized(original, seen)
    if pairs:
        exact(even, "equalise scales")
        proto = ir.to_proto(even)
        tried.append(
            attempt(proto, Ranges(proto, seen, OPERATORS, folder, report), min(tried, key=_harm).method, pairs)
        )
    best = min(tried, key=_harm)
    floats, timing = dict.fromkeys(int8.keep, "float: kept by name"), None
    if int8.watch is not None:
        slower, timing = by_time(model, best.make, int8.keep, int8.watch, int8.device, report)
        floats |= slower
    if int8.damage is not None:
        costs = {name: float(layer.macs or 1) for name, layer in layers.items() if name not in floats}
        floats |= by_damage(lambda kept: judged(best.make(kept)).error, costs, list(floats), int8.damage, report)
    record = Quantized(
        method=best.method,
        equalized=list(best.equalized),
        floats=list(floats),
        weight_bits=7 if int8.reduce_range else 8,
        n_ranges=seen.count,
        held_apart=are_apart,
        tried=[TriedRanges(method=one.method, equalized=bool(one.equalized), error=_harm(one)) for one in tried],
        timing=timing,
    )
    small = best.make(list(floats))
    return ir.from_proto(small), record, judged(small), floats


@dataclass(frozen=True)
class _Attempt:
    make: Make
    method: str
    equalized: Sequence[str]
    damage: Damage


def _harm(attempt: _Attempt) -> float:
    return attempt.damage.error


def _equalized(original: onnx.ModelProto, seen: Samples) -> tuple[ir.Model, list[str]]:
    """The model with the scales shared out between layers in a row, and the first layer of each two."""
    model = ir.from_proto(original)
    pairs = pairs_of(model)
    largest: dict[str, NDArray] = {}
    for values in Walk(original, seen).peek([pair.between for pair in pairs]) if pairs else ():
        for pair, value in zip(pairs, values, strict=True):
            found = np.abs(np.moveaxis(value, pair.axis, 0)).reshape(value.shape[pair.axis], -1).max(axis=1)
            known = largest.get(pair.between)
            largest[pair.between] = found if known is None else np.maximum(known, found)
    equalize(pairs, largest)
    return model, [pair.first.name for pair in pairs]


def with_ranges(original: onnx.ModelProto, ranges: object, int8: Int8, keep: Collection[str]) -> onnx.ModelProto:
    """The model with quantised layers but those of `keep`. Raises InputError where there is none."""
    from onnxruntime.quantization import QDQQuantizer, QuantType

    copy = onnx.ModelProto()
    copy.CopyFrom(original)
    floats = [*keep, *_float_additions(copy, keep)]
    with tool_errors():
        tool = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=int8.reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=floats,
            op_types_to_quantize=list(OPERATORS),
            extra_options={},
        )
        tool.quantize_model()
        tool.model.topological_sort()
    found = tool.model.model
    if not any(one.data_type == TensorProto.INT8 for one in found.graph.initializer):
        raise InputError(f"expected layers to quantise ({', '.join(LAYERS)}), found none; there is nothing to gain")
    return found


def _float_additions(proto: onnx.ModelProto, keep: Collection[str]) -> list[str]:
    """The names of Adds that stay float: of a bias, and of branches neither of which comes in int8."""
    constants = {one.name for one in proto.graph.initializer}
    in_int8: set[str] = set()
    found = []
    for node in proto.graph.node:
        if node.op_type in LAYERS:
            is_int8 = node.name not in keep
        else:
            is_int8 = node.op_type in OPERATORS and not in_int8.isdisjoint(node.input)
        if node.op_type == "Add" and not (is_int8 and constants.isdisjoint(node.input)):
            found.append(node.name)
        elif is_int8:
            in_int8.update(node.output)
    return found


def _per_channel(model: ir.Model) -> ir.Model:
    """In an opset that has scales by channel."""
    if model.opset_imports.get("", 0) >= _LEAST_OPSET:
        return model
    with tool_errors():
        raised = onnx.version_converter.convert_version(ir.to_proto(model), _LEAST_OPSET)
    return ir.from_proto(raised)
