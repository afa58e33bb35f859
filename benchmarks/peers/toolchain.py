"""What the ways to a measured file cost themselves: ours beside what one writes without us, wall seconds.

export   `rankfold export`'s, with its checks, and torch.onnx.export
fold     `rankfold fold`, with its checks, and onnxsim
bench    `rankfold bench`, launch pairs of a file and its copy, and a loop: 50 runs to warm up, 500 that count
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxsim
import torch

from ...devices import card
from ...devices.local import LocalTransport
from ...export.fold import fold_into
from ...export.from_torch import OPSET, to_onnx
from ...export.sessions import session
from ...runtime.measure import measure
from ...runtime.turns import Options
from ..answers import Found
from .installed import quiet
from .subjects import Subject

WARM_UP, RUNS = 50, 500


def toolchain(subject: Subject, options: Options) -> Found:
    """Seconds of each step, ours and without us."""
    module, example = subject.dense(), subject.example
    with TemporaryDirectory(prefix="rankfold-") as name:
        folder = Path(name)
        ours, theirs, copy = (folder / f"{what}.onnx" for what in ("ours", "theirs", "copy"))
        steps: dict[str, Callable[[], object]] = {
            "export": lambda: to_onnx(module, example, ours),
            "torch.onnx.export": lambda: _exported(module, example, theirs),
            "fold": lambda: fold_into(folder, [], ours, "folded.onnx", tile=1),
            "onnxsim": lambda: _simplified(theirs),
            "bench": lambda: measure(
                [("file", ours), ("copy", Path(shutil.copy(ours, copy)))],
                LocalTransport(),
                card.find("host"),
                options,
            ),
            "a loop": lambda: _looped(ours, example.numpy()[:1]),
        }
        return Found({f"{what} s": _seconds(step) for what, step in steps.items()})


def _seconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _exported(module: torch.nn.Module, example: torch.Tensor, path: Path) -> None:
    """As torch's documentation shows it."""
    batch = ({0: torch.export.Dim("batch")},)
    with quiet():
        torch.onnx.export(
            module, (example,), path, dynamo=True, verbose=False, opset_version=OPSET, dynamic_shapes=batch
        )


def _simplified(path: Path) -> None:
    found, _ = onnxsim.simplify(onnx.load(path))
    onnx.save(found, path)


def _looped(path: Path, image: np.ndarray) -> float:
    """Mean seconds of a run."""
    runner = session(path.read_bytes(), str(path), 1)
    feed = {runner.get_inputs()[0].name: image}
    for _ in range(WARM_UP):
        runner.run(None, feed)
    return _seconds(lambda: [runner.run(None, feed) for _ in range(RUNS)]) / RUNS
