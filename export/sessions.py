"""ONNX Runtime sessions for outputs, never for times: those are runtime's business."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: recent wheels start an upload thread

import onnxruntime as ort
from onnxruntime import InferenceSession
from onnxruntime.capi import onnxruntime_pybind11_state as states  # pyright: ignore[reportAttributeAccessIssue] (compiled)

from ..errors import InputError

_SILENT = 4  # fatal messages only: what the runtime refuses, it also raises
# every status ONNX Runtime turns into a Python exception; they share no base class but Exception
RUNTIME_ERRORS = (
    states.EPFail,
    states.EngineError,
    states.Fail,
    states.InvalidArgument,
    states.InvalidGraph,
    states.InvalidProtobuf,
    states.NoModel,
    states.NoSuchFile,
    states.NotFound,
    states.NotImplemented,
    states.RuntimeException,
)


def session(
    model: bytes | Path, what: str, threads: int = 1, *, optimized: bool = True, wide_int8: bool = False
) -> InferenceSession:
    """A session on the CPU provider. Raises InputError, naming `what`, when the runtime refuses the model.

    `model` is a file's content, or its path where external data belongs to it; not `optimized` runs the graph
    node by node as it is written; `wide_int8` keeps int8 sums from overflowing where a CPU adds them in 16 bits.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if wide_int8:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return _session(model, what, options)


def save_portable(model: bytes, path: Path, what: str) -> None:
    """Write the graph as ONNX Runtime optimises it for any CPU: an .ort file, or .onnx, by the path's suffix.

    As onnxruntime.tools.convert_onnx_models_to_ort does for ARM: all levels, without the NCHWc layout, whose kernels
    only some CPUs have and whose block is this CPU's; int8 stays int8, which x86 alone would make uint8.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", path.suffix[1:].upper())
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    _session(model, what, options, disabled=["NchwcTransformer"])


def _session(
    model: bytes | Path, what: str, options: ort.SessionOptions, disabled: Sequence[str] = ()
) -> InferenceSession:
    options.log_severity_level = _SILENT
    content = str(model) if isinstance(model, Path) else model
    try:
        return InferenceSession(content, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
    except RUNTIME_ERRORS as error:
        raise InputError(f"{what}: ONNX Runtime refuses it: {one_line(error)}; export it again") from error


def one_line(error: BaseException) -> str:
    """An error's text without line breaks, cut to a length that fits a terminal."""
    return " ".join(str(error).split())[:200]
