"""Static int8 quantisation of any ONNX file by ONNX Runtime's own tool, after folding: `rankfold quantize`.

Format QDQ, weights int8 a channel, activations uint8 a tensor, ranges from calibration data. CPUs with AVX2 or AVX-512
but without VNNI add products in 16 bits, which overflow: there weights keep 7 bits (`reduce_range`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import TensorProto

from ..errors import InputError
from ..files import sha256_of
from ..records import Parity
from ..runtime.inputs import Given
from .calibration import Feed, Preprocess, Samples, load
from .damage import damage_of
from .fold import dense_plan, finished, naming, opened, written
from .graphs import is_large
from .layers import layers_of
from .opsets import target as runtime_named
from .parity import lossy_check, require
from .passes.fold_channels import fold_channels
from .sessions import RUNTIME_ERRORS, one_line

OPERATORS = ["Conv", "Gemm", "MatMul"]
_NARROW = ("avx2", "avx512f")  # multiply-add pairs of 8-bit products into saturating 16 bits
_WIDE = ("avx_vnni", "avx512_vnni", "amx_int8")


def needs_reduced_range(isa: Collection[str]) -> bool:
    """Whether a CPU adds int8 products in 16 bits."""
    return any(name in isa for name in _NARROW) and not any(name in isa for name in _WIDE)


def quantize_into(
    folder: Path,
    source: Path,
    name: str,
    *,
    data: Path,
    most: int,
    how: Preprocess,
    reduce_range: bool,
    tile: int = 1,
    target_ort: str | None = None,
    given: Given | None = None,
) -> list[str]:
    """Fold and quantise; the model and its records in a scratch folder, the model's name last.

    Raises InputError for models and data that cannot be used, and for models that are quantised already.
    """
    wanted = None if target_ort is None else runtime_named(target_ort)
    with naming(source):
        model, case = opened(source, given or Given(), folder)
        if any(node.op_type in ("QuantizeLinear", "QLinearConv") for node in model.graph):
            raise InputError("the model is quantised already; give the float model")
        if is_large(model):
            raise InputError("the model is larger than 2 GB; quantize takes models that fit one ONNX file")
        dense_macs = {layer.name: layer.macs for layer in layers_of(model)}
        groups = fold_channels(model, tile)
        model = finished(model, wanted)
        case.exact(model, "fold dead channels")
        original = ir.to_proto(model)
        samples = load(data, original, how)
        quantized = _quantized(original, samples, min(samples.count, most), folder, reduce_range=reduce_range)
        reason = f"int8 a channel, {7 if reduce_range else 8} bits"
        plan = dense_plan(model, sha256_of(source), tile, groups, dense_macs, reason)
        content = case.content(quantized)
        checks = [*case.checks, *(require(lossy_check(truth, content, "quantise")) for truth in case.originals)]
        damage = damage_of(original, ir.to_proto(quantized), samples, most)
    return written(folder, name, quantized, plan, Parity(checks=checks, damage=damage))


class _Reader:
    """Calibration inputs one at a time, as the tool asks for them."""

    def __init__(self, samples: Samples, count: int) -> None:
        self._feeds: Iterator[Feed] = (samples.read(index, index + 1) for index in range(count))

    def get_next(self) -> dict | None:
        """The next input, None after the last."""
        feed = next(self._feeds, None)
        return None if feed is None else dict(feed)


def _quantized(
    original: onnx.ModelProto, samples: Samples, count: int, folder: Path, *, reduce_range: bool
) -> ir.Model:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    CalibrationDataReader.register(_Reader)
    entry, result = folder / "float.onnx", folder / "int8.onnx"
    onnx.save(original, entry)
    logging.getLogger().setLevel(logging.ERROR)  # the tool logs advice for its own command line
    try:
        quantize_static(
            entry,
            result,
            _Reader(samples, count),  # pyright: ignore[reportArgumentType] (registered above)
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    except (*RUNTIME_ERRORS, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"ONNX Runtime cannot quantise it: {one_line(error)}; fold it first, or leave it") from error
    found = onnx.load(result)
    entry.unlink()
    result.unlink()
    if not any(one.data_type == TensorProto.INT8 for one in found.graph.initializer):
        raise InputError(f"expected layers to quantise ({', '.join(OPERATORS)}), found none; there is nothing to gain")
    return ir.from_proto(found)
