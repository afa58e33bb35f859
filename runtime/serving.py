"""A model on its way to a board: read and checked here, loaded and warmed up there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from onnx.numpy_helper import to_array

from ..devices import probe
from ..devices.transport import BoardProcess, Session, Transport, serve
from ..errors import InputError, RankfoldError, Unreachable
from ..files import sha256_of
from ..records import Launch, Variant, Weather
from . import costs
from .turns import Options

Clock = Callable[[], float]
Result = TypeVar("Result")

WAITS_S = (1.0, 5.0, 15.0, 30.0, 60.0, 60.0)  # a board that restarts is back within a minute or two


@dataclass(frozen=True)
class Model:
    """An ONNX file under the name that it is measured as."""

    name: str
    path: Path
    sha256: str
    costs: costs.Costs

    def variant(self, launches: list[Launch]) -> Variant:
        """It in a record."""
        return Variant(
            name=self.name,
            file=str(self.path),
            sha256=self.sha256,
            size_bytes=self.path.stat().st_size,
            macs=self.costs.macs,
            parameters=self.costs.parameters,
            launches=launches,
        )


Models = Sequence[tuple[str, Path] | Model]


@dataclass(frozen=True)
class Board:
    """A way to start processes, and what all of them are told."""

    transport: Transport
    options: Options
    cores: list[int]
    clock: Clock

    def serve(self, model: Model, process: BoardProcess) -> Session:
        """Load `model` in `process` and warm it up."""
        with naming(model.name):
            return serve(process, self.request(model))

    def tried(self, model: Model) -> Session:
        """`serve` in a process that then ends."""
        with self.transport.launch() as process:
            return self.serve(model, process)

    def weather(self) -> Weather:
        """What it is like there now."""
        with self.transport.launch() as process:
            return probe.weather(process)

    def request(self, model: Model) -> dict[str, Any]:
        """What a process is told of a model."""
        return {"model": self.transport.place(model.path), **told(self.transport, self.options, self.cores)}


def read(models: Models) -> list[Model]:
    """All models, those read that are still paths. Raises InputError where one is none, or two have one name."""
    names = [model.name if isinstance(model, Model) else model[0] for model in models]
    if not names:
        raise InputError("no model to measure; name one ONNX file or more")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two models are called '{repeated[0]}'; give each its own name")
    return [model if isinstance(model, Model) else source(model[0], Path(model[1])) for model in models]


def told(transport: Transport, options: Options, cores: list[int]) -> dict[str, Any]:
    """What a process is told whatever its model: how to run, where, and on which inputs."""
    return {
        "threads": options.threads,
        "provider": options.provider,
        "session_config": dict(options.session_config),
        "cores": cores,
        "seed": options.seed,
        "shapes": {name: list(shape) for name, shape in options.shapes.items()},
        "inputs": None if options.inputs is None else transport.place(options.inputs),
    }


def persistently(work: Callable[[], Result], tell: Callable[[str], None] = lambda why: None) -> Result:
    """What `work` returns. It is done anew when the connection was lost, a few times: the board may come back.

    `tell(why)` every second of a wait. What `work` has not returned is lost with the connection: make it short.
    """
    for wait_s in WAITS_S:
        try:
            return work()
        except Unreachable as error:
            parts = max(1, round(wait_s))
            for part in range(parts):
                tell(f"waiting {wait_s * (1 - part / parts):.0f} s: {error}")
                time.sleep(wait_s / parts)
    return work()


@contextmanager
def naming(model: str) -> Iterator[None]:
    """Say which model a board's error is about."""
    try:
        yield
    except RankfoldError as error:
        raise type(error)(f"{model}: {error}") from error


def source(name: str, path: Path) -> Model:
    """Read and check a model and count its costs; the graph itself is not kept."""
    model = costs.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type in costs.FLOATS and np.isnan(to_array(tensor)).any():
            raise InputError(f"{path}: initialiser '{tensor.name}' contains NaN; train or export it again")
    return Model(name, path, sha256=sha256_at(path), costs=costs.count(model))


def sha256_at(path: Path) -> str:
    """The digest of a file; InputError where it cannot be read."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error


def check_unchanged(models: list[Model]) -> None:
    """Every launch opened the file anew: it must be the one that was named."""
    for model in models:
        if sha256_at(model.path) != model.sha256:
            raise InputError(f"{model.path} changed while it was measured; measure again")
