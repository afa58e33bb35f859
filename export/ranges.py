"""Ranges of activations for int8, by ONNX Runtime's own calibrators, with one input's activations in memory at a time.

minmax          the least and the largest value that any input brings
percentile-P    P % of the values lie within, by a histogram of 2048 bins
entropy         the least divergence of the values from their levels (Migacz, 8-bit inference with TensorRT, GTC 2017)
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from ..errors import InputError
from ..runtime.inputs import fixed_batch
from .calibration import Feed, Samples, every
from .reporting import Report, silent
from .sessions import RUNTIME_ERRORS, one_line

METHODS = ("minmax", "percentile-99.999", "percentile-99.99", "percentile-99.9", "entropy")
_HISTOGRAM_INPUTS = 64  # evenly spread: a histogram costs as much as running the layer, a bin has thousands of values


@dataclass
class Ranges:
    """What the inputs do to the activations of one float model around `operators`; read when first asked for."""

    proto: onnx.ModelProto
    samples: Samples
    operators: Sequence[str]
    folder: Path
    report: Report = silent
    _calibrators: dict[str, Any] = field(default_factory=dict)

    def by(self, method: str) -> Any:
        """The tool's `TensorsData` by one of `METHODS`. Raises InputError where the tool cannot take the model."""
        kind, _, share = method.partition("-")
        if kind not in self._calibrators:
            self._calibrators[kind] = self._read(kind)
        calibrator = self._calibrators[kind]
        with tool_errors():
            if share:
                calibrator.collector.percentile = float(share)
            return calibrator.compute_data()

    def _read(self, kind: str) -> Any:
        from onnxruntime.quantization import CalibrationMethod, create_calibrator

        method = {
            "minmax": CalibrationMethod.MinMax,
            "percentile": CalibrationMethod.Percentile,
            "entropy": CalibrationMethod.Entropy,
        }[kind]
        entry = self.folder / "calibrated.onnx"
        onnx.save(self.proto, entry)
        with tool_errors():
            calibrator = create_calibrator(
                entry,
                list(self.operators),
                str(self.folder / "observed.onnx"),
                method,
                extra_options={"symmetric": False},
            )
            entry.unlink()
            (self.folder / "observed.onnx").unlink()
            samples = self.samples if kind == "minmax" else _spread(self.samples)
            size = fixed_batch(self.proto) or 1
            for start in range(0, samples.count - size + 1, size):
                self.report(f"reading ranges, {kind}", start, samples.count)
                reader: Any = _Reader(samples.read(start, start + size))
                calibrator.collect_data(reader)
            self.report(f"reading ranges, {kind}", samples.count, samples.count)
        return calibrator


class _Reader:
    """One batch, as the tool asks for it."""

    def __init__(self, feed: Feed) -> None:
        self._feeds = iter([feed])

    def get_next(self) -> Feed | None:
        """The batch, then None."""
        return next(self._feeds, None)


def _spread(samples: Samples) -> Samples:
    """At most so many inputs as histograms need."""
    return every(samples, -(-samples.count // _HISTOGRAM_INPUTS), 0)


@contextlib.contextmanager
def tool_errors() -> Iterator[None]:
    """The tool's failures as one line, and nothing of what it prints or logs as advice for its own command line."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(None):
            yield
    except InputError:
        raise
    except (*RUNTIME_ERRORS, ValueError, RuntimeError, KeyError, AssertionError) as error:
        raise InputError(f"ONNX Runtime cannot quantise it: {one_line(error)}; fold it first, or leave it") from error
    finally:
        root.setLevel(level)
