"""A torch module as an ONNX file: the only file of export that needs torch.

The graph keeps BatchNormalization as it is: folding it is our own exact pass, for every model alike.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from ..errors import CheckFailed, InputError
from ..files import write_bytes
from ..records import ParityCheck
from .graphs import IR_VERSION, serialize
from .parity import BATCHES, EXACT_FACTOR, FLOOR, difference, one_line, run
from .passes.canonicalize import canonicalize

# The newest opset that the dynamo exporter writes natively and ONNX Runtime 1.16 and later read (they go to
# 19); a lower one would need onnx's version converter, which the exporter itself warns about.
OPSET = 18
NEW, OLD = "torch.onnx dynamo", "torch.onnx torchscript"

# Warnings of the exporters about themselves; anything else a model causes is passed on.
_OWN_WARNINGS = (
    (FutureWarning, r".*isinstance\(treespec, LeafSpec\).*"),
    (DeprecationWarning, r".*legacy TorchScript-based ONNX export.*"),
    (DeprecationWarning, r".*torch\.onnx.*"),
    (DeprecationWarning, r"The feature will be removed.*"),
    (UserWarning, r".*Exporting a model to ONNX with.*"),
)
_EXPORT_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, KeyError)


def to_onnx(module: torch.nn.Module, example_input: torch.Tensor, path: Path) -> tuple[str, list[ParityCheck]]:
    """Write `module` to `path` with a symbolic batch; returns the exporter that succeeded, and its checks.

    `example_input` is n×… on the CPU, as the module is. Input and output are named `input` and `output`, the first
    axis `batch`. Checked at batch 1 and 8 against the module in float64: the error is at most 4 times the float32
    module's own. The older exporter is used when the newer one fails or differs; when both do, CheckFailed, and
    nothing is written.
    """
    failures = []
    # torch.export takes a batch of 1 for a constant
    example = example_input if len(example_input) > 1 else torch.cat([example_input, example_input])
    with _evaluating(module):
        reference = _reference(module, example)
        for name, export in ((NEW, _dynamo), (OLD, _torchscript)):
            try:
                with _quiet():
                    content = _tidied(export(module, example))
            except _EXPORT_ERRORS as error:
                failures.append(f"{name}: {type(error).__name__}: {one_line(error)}")
                continue
            checks = [reference.check(content, batch, name) for batch in BATCHES]
            if all(check.passed for check in checks):
                write_bytes(path, content)
                return name, checks
            failures.append(f"{name}: relative error {max(check.relative for check in checks):.2g}")
    raise CheckFailed(f"expected an ONNX model that agrees with torch, found {'; '.join(failures)}")


def _dynamo(module: torch.nn.Module, example: torch.Tensor) -> ir.Model:
    """Without its optimiser, which folds BatchNorm and fuses layers on its own account."""
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        optimize=False,
        verbose=False,
        opset_version=OPSET,
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None, "the dynamo exporter returns a program"
    return program.model


def _torchscript(module: torch.nn.Module, example: torch.Tensor) -> ir.Model:
    """The older exporter; `PRESERVE` keeps it from folding BatchNorm and renaming the weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            module,
            (example,),
            path,
            dynamo=False,
            verbose=False,
            opset_version=OPSET,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
        )
        return ir.from_proto(onnx.load_model(path))


def _tidied(model: ir.Model) -> bytes:
    from onnxscript import optimizer  # late: only the exporter needs it, and it takes a second

    optimizer.fold_constants(model)
    canonicalize(model)
    model.ir_version = IR_VERSION
    model.producer_name = "pytorch"
    for node in model.graph:
        node.metadata_props.clear()  # the exporter's stack traces: machine paths, and most of the file
    return serialize(model)


@dataclass(frozen=True)
class _Reference:
    """Images, what the module puts out for them in float64, and how far off a file of it may be.

    Errors are shares of the largest output of all images: of a single one they are luck.
    """

    numbers: torch.Tensor
    truth: NDArray
    bound: float

    def check(self, content: bytes, batch: int, exporter: str) -> ParityCheck:
        """Hold the file against the first `batch` images."""
        try:
            found = run(content, {"input": self.numbers[:batch].numpy()})
            _, absolute = difference(found, [self.truth[:batch]])
        except InputError:
            absolute = float("inf")
        scale = float(np.abs(self.truth).max())
        relative = absolute / scale if 0 < scale < np.inf else absolute
        largest = torch.finfo(torch.float64).max
        return ParityCheck(
            what=f"export by {exporter}",
            batch=batch,
            relative=min(relative, largest),
            absolute=min(absolute, largest),
            bound=self.bound,
            passed=relative <= self.bound,
        )


@torch.no_grad()
def _reference(module: torch.nn.Module, example: torch.Tensor) -> _Reference:
    numbers = torch.randn(max(BATCHES), *example.shape[1:], generator=torch.Generator().manual_seed(0))
    truth = copy.deepcopy(module).double()(numbers.double()).numpy()
    own, _ = difference([module(numbers).numpy()], [truth])
    return _Reference(numbers, truth, max(EXACT_FACTOR * own, FLOOR))


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every submodule's own mode afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' remarks about themselves from users."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category, message in _OWN_WARNINGS:
                warnings.filterwarnings("ignore", message=message, category=category)
            yield
    finally:
        log.setLevel(level)
