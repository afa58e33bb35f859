"""ONNX Runtime sessions for outputs, never for times: those are runtime's business."""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: recent wheels start an upload thread

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as states  # pyright: ignore[reportAttributeAccessIssue] (compiled)

from ..errors import InputError

_ERRORS_ONLY = 3
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
    states.NotImplemented,
    states.RuntimeException,
)


def session(model: bytes, what: str, threads: int = 1) -> ort.InferenceSession:
    """A session on the CPU provider. Raises InputError, naming `what`, when the runtime refuses the model."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except RUNTIME_ERRORS as error:
        raise InputError(f"{what}: ONNX Runtime refuses it: {one_line(error)}; export it again") from error


def one_line(error: BaseException) -> str:
    """An error's text without line breaks, cut to a length that fits a terminal."""
    return " ".join(str(error).split())[:200]
