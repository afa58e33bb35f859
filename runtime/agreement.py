"""What models put out on a device, held against what they put out here. It takes no time of anything.

Both run on the same inputs by the same board.py, here with int8 sums that cannot overflow, which on older x86
processors they otherwise may.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from ..devices import probe
from ..devices.local import LocalTransport
from ..devices.transport import BoardProcess, Transport, load_model, outputs
from ..errors import CheckFailed, InputError
from ..records import Agreement, Bench, Card, Context
from . import costs
from .inputs import Given, make_inputs, read_arrays, write_arrays
from .onnxfile import nodes, tensors
from .serving import Model, Models, naming, read, told
from .turns import Options

# How far outputs may be off on another CPU, relative to the largest: what these numbers are precise to.
FLOAT32 = 1e-5  # aarch64 against x86 is below 2e-6 for single convolutions, SME kernels included
INT8 = 1e-2  # a level more or less of an 8-bit output: 1/127 of the largest
HALF = 2e-2  # CPUs with half-precision arithmetic add in it, others in float32
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"}
_EXACT_INT8 = {"session.x64quantprecision": "1"}


def precision(proto: onnx.ModelProto) -> float:
    """How far a model's outputs may be off on another CPU, by the kind of numbers it holds."""
    if any(tensor.data_type in _HALVES for tensor in tensors(proto)):
        return HALF
    return INT8 if any(node.op_type in _QUANTIZED for node in nodes(proto)) else FLOAT32


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


def agree(
    models: Models,
    transport: Transport,
    card: Card,
    options: Options,
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Bench:
    """A bench without times: what each model puts out on the device, against here. InputError where the options ask
    for times. `report(name, done, total)` counts models.
    """
    _refuse_times(card, options)
    sources = read(models)
    given = Given(options.shapes, None if options.inputs is None else read_arrays(options.inputs))
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    with transport.launch() as there, LocalTransport().launch() as here:
        facts = probe.facts(there)
        probe.check_card(card, facts)
        before = probe.weather(there)
        agreements, shapes = [], {}
        for done, model in enumerate(sources):
            report(model.name, done, len(sources))
            with naming(model.name), TemporaryDirectory(prefix="rankfold-") as folder:
                proto, inputs = costs.load(model.path), Path(folder) / "inputs.npz"
                arrays = make_inputs(proto, 1, np.random.default_rng(options.seed), given)
                write_arrays(inputs, arrays)
                shapes = shapes or {name: list(array.shape) for name, array in arrays.items()}
                relative = _off(model, replace(options, inputs=inputs), transport, there, here)
                agreements.append(Agreement(variant=model.name, relative=relative, allowed=precision(proto)))
        report("done", len(sources), len(sources))
        after = probe.weather(there)
    context = Context(
        device=card.name,
        facts=facts,
        threads=options.threads,
        cores=[],
        provider=next(
            (name for name in facts.providers if name.lower().startswith(options.provider)), options.provider
        ),
        session_config=dict(options.session_config),
        input_shapes=shapes,
        block_runs=0,
        dropped_runs=0,
        started_at=started_at,
        weather_before=before,
        weather_after=after,
    )
    variants = [model.variant([]) for model in sources]
    return Bench(context=context, variants=variants, pairs=[], comparisons=[], cautions=[], agreements=agreements)


def judge(found: Bench) -> None:
    """Raises CheckFailed, naming the model that is furthest off, where one is off by more than it may."""
    wrong = [one for one in found.agreements if not one.passed]
    if wrong:
        worst = max(wrong, key=lambda one: one.relative / one.allowed)
        raise CheckFailed(
            f"{worst.variant}: outputs on {found.context.device} are off by {worst.relative:.1e} of the largest here, "
            f"allowed {worst.allowed:.0e}; look for the layer where they part"
        )


def _refuse_times(card: Card, options: Options) -> None:
    asked = {
        "--pairs": options.pairs,
        "--half-width": options.half_width,
        "--rate": options.rate_hz,
        "--sustain": options.sustain_s,
        "--operators": options.operators,
    }
    if wrong := [option for option, value in asked.items() if value]:
        raise InputError(f"{' and '.join(wrong)}: device '{card.name}' is emulated and yields no times; leave it out")


def _off(model: Model, options: Options, transport: Transport, there: BoardProcess, here: BoardProcess) -> float:
    """By how much outputs differ, relative to the largest here."""
    exact = replace(options, provider="cpu", session_config={**options.session_config, **_EXACT_INT8})
    relative, _ = difference(_outputs(model, options, transport, there), _outputs(model, exact, LocalTransport(), here))
    if not np.isfinite(relative):
        raise CheckFailed("it puts out NaN, infinity or other shapes than here; look for the layer where they part")
    return relative


def _outputs(model: Model, options: Options, transport: Transport, process: BoardProcess) -> list[NDArray]:
    assert options.inputs is not None, "both sides take the same"
    load_model(process, {"model": transport.place(model.path), **told(transport, options, [])})
    return outputs(process, transport.place(options.inputs))
