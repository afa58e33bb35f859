"""The seam between measuring and boards: a transport places files and starts processes, a process answers requests.

Answers come from another program and maybe another machine: they are checked here before anyone uses them.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from ..errors import DeviceError, InputError
from ..records import Part, first_problem

Seconds = Annotated[float, Field(gt=0, lt=1e6)]
Bytes = Annotated[int, Field(gt=0, lt=1 << 63)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Text = Annotated[str, Field(max_length=256)]
AnswerType = TypeVar("AnswerType", bound=Part)

LOAD_LIMIT_S = 600.0  # a big model from a slow card, loaded, optimised and warmed up
_MAX_ERROR_CHARACTERS = 500


class BoardProcess(Protocol):
    """One fresh process of board.py. Leaving the context ends it."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Send one request and return its answer; DeviceError when none came within `limit_s`."""
        ...


class Transport(Protocol):
    """The way to a board."""

    def launch(self) -> BoardProcess:
        """Start board.py in a fresh process there."""
        ...

    def place(self, path: Path) -> str:
        """Where a process there finds this file, as it is now."""
        ...


class Outfit(Part):
    """What is installed on a board, and free; a package that is missing has no version."""

    python_version: Text
    architecture: Text
    libc: Text | None
    versions: dict[Text, Text | None] = Field(max_length=8)
    free_bytes: Count
    time_s: float


class Session(Part):
    """What a process says of the model it has loaded and warmed up."""

    session_creation_s: Seconds
    first_run_s: Seconds
    warmup_s: list[Seconds] = Field(min_length=1, max_length=1_000_000)
    baseline_rss_bytes: Bytes | None
    peak_rss_bytes: Bytes | None
    providers: list[Text] = Field(min_length=1, max_length=32)
    nodes_by_provider: dict[Text, Count] = Field(max_length=32)
    input_shapes: dict[Text, list[Annotated[int, Field(gt=0, lt=1 << 63)]]] = Field(max_length=1024)


class Samples(Part):
    """One block of timed runs; `steal_s` and `cpu_s` are over the timed runs alone."""

    samples_s: list[Seconds]
    cpu_s: Annotated[float, Field(ge=0, lt=1e6)] | None
    steal_s: Annotated[float, Field(ge=0, lt=1e6)] | None
    involuntary_switches: Count | None


class Frames(Part):
    """Frames that arrived at a fixed rate: seconds of each run, and from its frame's arrival to its end."""

    samples_s: list[Seconds]
    responses_s: list[Seconds]
    dropped: Count


class Turns(Part):
    """Seconds of each model in each round of a contest."""

    samples_s: list[list[Seconds]]


class NodeTimes(Part):
    """One node of the optimised graph: its seconds in each run."""

    name: Annotated[str, Field(max_length=4096)]
    op: Text
    provider: Text
    samples_s: list[Annotated[float, Field(ge=0, lt=1e6)]]


class Tensor(Part):
    """An array as it travels."""

    dtype: Annotated[str, Field(pattern=r"^(float(16|32|64)|u?int(8|16|32|64)|bool)$")]
    shape: list[Count] = Field(max_length=32)
    base64: str

    def array(self) -> NDArray:
        """It, in a copy of its own; DeviceError where bytes and shape disagree."""
        try:
            return np.frombuffer(base64.b64decode(self.base64, validate=True), self.dtype).reshape(self.shape).copy()
        except ValueError as error:
            raise DeviceError(f"the board answered a tensor that is none ({error}); run again") from error


class Outputs(Part):
    """What a model puts out."""

    outputs: list[Tensor] = Field(max_length=1024)


class Profile(Part):
    """The runtime's profile of some runs."""

    runs_s: list[Annotated[float, Field(gt=0, lt=1e6)]]
    nodes: list[NodeTimes] = Field(max_length=1_000_000)


def profile(process: BoardProcess, request: dict[str, Any], runs: int, limit_s: float) -> Profile:
    """Seconds of every node in each of `runs` runs; `request` as for `serve`, in a process that serves nothing."""
    found = checked(Profile, process.ask({"command": "operators", **request, "runs": runs}, limit_s))
    if {len(found.runs_s), *(len(node.samples_s) for node in found.nodes)} - {runs}:
        raise DeviceError(f"the board's profile does not have the {runs} runs that were asked for; run again")
    return found


def contest(process: BoardProcess, request: dict[str, Any], rounds: int, seconds: float) -> list[list[float]]:
    """Seconds of each of `request["models"]`, which take turns of one run, in each of up to `rounds` rounds."""
    limit_s = LOAD_LIMIT_S + 20 * seconds
    answer = process.ask({"command": "contest", **request, "rounds": rounds, "seconds": seconds}, limit_s)
    found = checked(Turns, answer).samples_s
    if len(found) != len(request["models"]) or len({len(samples) for samples in found}) != 1 or not found[0]:
        raise DeviceError("the board did not answer as many samples for every model; run again")
    return found


def load_model(process: BoardProcess, request: dict[str, Any]) -> None:
    """Load a model that is asked for its outputs, not for its time; `request` as for `serve`."""
    checked(Part, process.ask({"command": "load", **request}, LOAD_LIMIT_S))


def outputs(process: BoardProcess, inputs: str) -> list[NDArray]:
    """What the loaded model puts out for an npz file there."""
    answer = process.ask({"command": "outputs", "inputs": inputs}, LOAD_LIMIT_S)
    return [tensor.array() for tensor in checked(Outputs, answer).outputs]


def pace(process: BoardProcess, rate_hz: float, frames: int) -> Frames:
    """Run on frames that arrive at a fixed rate."""
    limit_s = LOAD_LIMIT_S + 2 * frames / rate_hz
    found = checked(Frames, process.ask({"command": "paced", "rate_hz": rate_hz, "frames": frames}, limit_s))
    if not len(found.samples_s) == len(found.responses_s) == frames - found.dropped:
        raise DeviceError(f"the board answered {len(found.samples_s)} of {frames} frames; run again")
    return found


def serve(process: BoardProcess, request: dict[str, Any]) -> Session:
    """Load and warm up a model; `request` has model, threads, provider, session_config, cores and seed."""
    return checked(Session, process.ask({"command": "serve", **request}, LOAD_LIMIT_S))


def time_block(process: BoardProcess, runs: int, dropped: int, limit_s: float, *, rest: bool = True) -> Samples:
    """Time `runs` inferences after `dropped` uncounted ones; with `rest` the answer comes when its threads sleep."""
    request = {"command": "block", "runs": runs, "dropped": dropped, "rest": rest}
    block = checked(Samples, process.ask(request, limit_s))
    if len(block.samples_s) != runs:
        raise DeviceError(f"the board answered {len(block.samples_s)} samples to a block of {runs}; run again")
    return block


def checked(kind: type[AnswerType], answer: dict[str, Any]) -> AnswerType:
    """The board's answer as a `kind`, or its refusal as an InputError, or what is wrong with it."""
    if "error" in answer:
        text = str(answer["error"])[:_MAX_ERROR_CHARACTERS]
        raise InputError("".join(c if c.isprintable() else " " for c in text))
    try:
        return kind.model_validate(answer)
    except ValidationError as error:
        raise DeviceError(f"the board's answer is malformed: {first_problem(error)}") from error
