"""Measure models on a device in launch pairs: raw samples, and all that was true while they were taken.

The unit is a pair: the baseline and a variant, each in a fresh process, both alive, on the same cores, taking
turns in blocks. Whole launches of one file differ by more than the models do, so the interval is over pairs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from onnx.numpy_helper import to_array

from ..devices import probe
from ..devices.transport import BoardProcess, Session, Transport, serve, time_block
from ..errors import InputError, RankfoldError
from ..files import sha256_of
from ..records import Bench, Block, Card, Comparison, Context, Launch, Pair, Variant
from . import costs
from .diagnose import diagnose
from .stats import pair_log_ratio, ratio_interval
from .turns import Options, Turns, checked_pairs, choose_cores, choose_turns, mirrored_order

__all__ = ["Options", "Progress", "compare", "measure"]


@dataclass(frozen=True)
class Progress:
    """How far a measurement is: steps done of all, seconds left (None until known), what is being done."""

    done: int
    total: int
    left_s: float | None
    what: str


@dataclass(frozen=True)
class _Model:
    name: str
    path: Path
    sha256: str
    costs: costs.Costs


class _Reporter:
    """Counts steps and estimates the time left from those of the same kind."""

    def __init__(self, tell: Callable[[Progress], None] | None, models: int, pairs: int) -> None:
        self.tell, self.models, self.total = tell, models, models + pairs
        self.pairs_began: float | None = None

    def __call__(self, done: int, what: str) -> None:
        """Say that `done` steps are done and `what` comes next."""
        pairs_done = done - self.models
        if pairs_done == 0:
            self.pairs_began = time.monotonic()
        left_s = None
        if self.pairs_began is not None and pairs_done > 0:
            left_s = (time.monotonic() - self.pairs_began) / pairs_done * (self.total - done)
        if self.tell:
            self.tell(Progress(done, self.total, left_s, what))


def measure(
    models: Sequence[tuple[str, Path]],
    transport: Transport,
    card: Card,
    options: Options | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Bench:
    """Time `models` (name, ONNX file) on a device, each against the first.

    Pairs go round-robin over the variants, so that slow changes of the machine fall on all alike. A single
    model is timed alone: its pairs name it twice and hold its blocks only, and there is no comparison.
    InputError: a bad model, name or option; raised before anything is timed. DeviceError: the board failed.
    """
    options = options or Options()
    pairs = checked_pairs(options)
    sources = [_source(name, Path(path)) for name, path in _checked_names(models)]
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    with transport.launch() as process:
        facts = probe.facts(process)
        probe.check_card(card, facts)
        before = probe.weather(process)
    cores = choose_cores(options, facts)
    schedule = [(sources[0], variant) for _ in range(pairs) for variant in sources[1:] or sources]
    report = _Reporter(on_progress, len(sources), len(schedule))
    board = _Board(transport, options, cores)

    trials = _try_all(sources, board, report)
    turns = choose_turns([min(trial.warmup_s) for trial in trials], options)
    timed: list[Pair] = []
    launches: dict[str, list[Launch]] = {model.name: [] for model in sources}
    for index, (baseline, variant) in enumerate(schedule):
        report(len(sources) + index, f"{variant.name} against {baseline.name}")
        pair, sessions = _run_pair(baseline, variant, options.seed + index, turns, board)
        timed.append(pair)
        for name, session in sessions.items():
            launches[name].append(Launch(pair=index, **session.model_dump(exclude={"input_shapes"})))
    report(len(sources) + len(schedule), "done")
    _check_unchanged(sources)

    with transport.launch() as process:
        after = probe.weather(process)
    context = Context(
        device=card.name,
        facts=facts,
        threads=options.threads,
        cores=cores,
        provider=trials[0].providers[0],
        session_config=dict(options.session_config),
        input_shapes=trials[0].input_shapes,
        block_runs=turns.runs,
        dropped_runs=options.dropped_runs,
        started_at=started_at,
        weather_before=before,
        weather_after=after,
    )
    bench = Bench(
        context=context,
        variants=[_variant(model, launches[model.name]) for model in sources],
        pairs=timed,
        comparisons=[compare(sources[0].name, model.name, timed) for model in sources[1:]],
        cautions=[],
    )
    return bench.model_copy(update={"cautions": diagnose(bench)})


def compare(baseline: str, variant: str, pairs: Sequence[Pair]) -> Comparison:
    """How many times faster `variant` is than `baseline`, with its interval over their pairs."""
    logs = [pair_log_ratio(p) for p in pairs if (p.baseline, p.variant) == (baseline, variant)]
    ratio, low, high = ratio_interval(logs)
    return Comparison(baseline=baseline, variant=variant, ratio=ratio, low=low, high=high, pairs=len(logs))


# --- one pair -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Board:
    """A way to start processes, and what all of them are told."""

    transport: Transport
    options: Options
    cores: list[int]

    def serve(self, model: _Model, process: BoardProcess) -> Session:
        """Load `model` in `process` and warm it up."""
        request = {
            "model": str(model.path.resolve()),
            "threads": self.options.threads,
            "provider": self.options.provider,
            "session_config": dict(self.options.session_config),
            "cores": self.cores,
            "seed": self.options.seed,
            "shapes": {name: list(shape) for name, shape in self.options.shapes.items()},
            "inputs": None if self.options.inputs is None else str(self.options.inputs.resolve()),
        }
        with _naming(model.name):
            return serve(process, request)


@contextmanager
def _naming(model: str) -> Iterator[None]:
    """Say which model a board's error is about."""
    try:
        yield
    except RankfoldError as error:
        raise type(error)(f"{model}: {error}") from error


def _try_all(models: list[_Model], board: _Board, report: _Reporter) -> list[Session]:
    """Load and run each once before anything is timed: does it run there, and how long does a run take?"""
    trials: list[Session] = []
    for model in models:
        report(len(trials), f"trying {model.name}")
        with board.transport.launch() as process:
            trials.append(board.serve(model, process))
        _check_same_input(models[0].name, trials[0], model.name, trials[-1])
    return trials


def _run_pair(
    baseline: _Model, variant: _Model, seed: int, turns: Turns, board: _Board
) -> tuple[Pair, dict[str, Session]]:
    """Start both, let them take turns, end both; `start_s` counts from before the first process started."""
    models = {model.name: model for model in (baseline, variant)}
    order = mirrored_order((baseline.name, variant.name), turns.couples, seed)
    blocks: list[Block] = []
    began = time.monotonic()
    with ExitStack() as stack:
        processes = {name: stack.enter_context(board.transport.launch()) for name in dict.fromkeys(order)}
        sessions = {name: board.serve(models[name], process) for name, process in processes.items()}
        for name in order:
            start_s = time.monotonic() - began
            with _naming(name):
                samples = time_block(processes[name], turns.runs, board.options.dropped_runs, turns.limit_s)
            blocks.append(Block(variant=name, start_s=start_s, **samples.model_dump()))
    return Pair(baseline=baseline.name, variant=variant.name, seed=seed, blocks=blocks), sessions


# --- what is asked for ----------------------------------------------------------------------------------------


def _checked_names(models: Sequence[tuple[str, Path]]) -> Sequence[tuple[str, Path]]:
    names = [name for name, _ in models]
    if not names:
        raise InputError("no model to measure; name one ONNX file or more")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two models are called '{repeated[0]}'; give each its own name")
    return models


def _source(name: str, path: Path) -> _Model:
    """Read and check a model and count its costs; the graph itself is not kept."""
    model = costs.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type in costs.FLOATS and np.isnan(to_array(tensor)).any():
            raise InputError(f"{path}: initialiser '{tensor.name}' contains NaN; train or export it again")
    return _Model(name, path, sha256=_sha256(path), costs=costs.count(model))


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error


def _check_same_input(baseline: str, expected: Session, name: str, found: Session) -> None:
    """Models are compared on one input: the names may differ, the shapes may not."""
    shapes, other = list(expected.input_shapes.values()), list(found.input_shapes.values())
    if shapes != other:
        raise InputError(f"{name} takes inputs {other}, {baseline} takes {shapes}; compare models of one input")


def _check_unchanged(models: list[_Model]) -> None:
    """Every launch opened the file anew: it must be the one that was named."""
    for model in models:
        if _sha256(model.path) != model.sha256:
            raise InputError(f"{model.path} changed while it was measured; measure again")


def _variant(model: _Model, launches: list[Launch]) -> Variant:
    return Variant(
        name=model.name,
        file=str(model.path),
        sha256=model.sha256,
        size_bytes=model.path.stat().st_size,
        macs=model.costs.macs,
        parameters=model.costs.parameters,
        launches=launches,
    )
