"""Measure models on a device in launch pairs: raw samples, and all that was true while they were taken.

The unit is a pair: the baseline and a variant, each in a fresh process, both alive, on the same cores, taking
turns in blocks. Whole launches of one file differ by more than the models do, so the interval is over pairs.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from ..devices import probe
from ..devices.transport import Session, Transport, time_block
from ..errors import InputError
from ..records import Begun, Bench, Block, Card, Comparison, Context, Done, Facts, Launch, Pair, Pilot
from .diagnose import diagnose
from .kept import Kept
from .load import paced, sustained
from .operators import operators
from .serving import Board, Clock, Model, Models, check_unchanged, naming, persistently, read, sha256_at
from .stats import half_width as ratio_half_width
from .stats import pair_log_ratio, pairs_of, ratio_interval
from .turns import Options, Turns, checked_pairs, choose_cores, choose_turns, mirrored_order, pairs_after_pilot

__all__ = ["Options", "Progress", "compare", "measure"]

_PILOT_SEEDS = 1 << 20  # a pilot's orders are other ones than those of the pairs that count


@dataclass(frozen=True)
class Progress:
    """How far a measurement is: steps done of all, seconds left (None until known), what is being done."""

    done: int
    total: int
    left_s: float | None
    what: str


class _Reporter:
    """Counts trials and pairs, and estimates the time left from the pairs."""

    def __init__(self, tell: Callable[[Progress], None] | None, clock: Clock, trials: int, pairs: int) -> None:
        self._tell, self._clock, self._trials = tell, clock, trials
        self.total, self._done = trials + pairs, 0
        self._pairs_began: float | None = None

    def __call__(self, what: str) -> None:
        """Say that `what` comes next."""
        if self._done == self._trials:
            self._pairs_began = self._clock()
        pair_s = self.pair_s
        left_s = None if pair_s is None else pair_s * (self.total - self._done)
        if self._tell:
            self._tell(Progress(self._done, self.total, left_s, what))
        self._done += 1

    def note(self, what: str, left_s: float) -> None:
        """Say how far the present step is."""
        if self._tell:
            self._tell(Progress(self._done - 1, self.total, left_s, what))

    def wait(self, why: str) -> None:
        """Say why nothing happens."""
        if self._tell:
            self._tell(Progress(self._done - 1, self.total, None, why))

    @property
    def pair_s(self) -> float | None:
        """Seconds of a pair so far; None before the first is done."""
        pairs = self._done - self._trials
        if self._pairs_began is None or pairs < 1:
            return None
        return (self._clock() - self._pairs_began) / pairs


def measure(
    models: Models,
    transport: Transport,
    card: Card,
    options: Options | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    clock: Clock = time.monotonic,
    kept: Kept | None = None,
) -> Bench:
    """Time `models` (name and ONNX file, or what was read of it) on a device, each against the first.

    Pairs go round-robin over the variants, so that slow changes of the machine fall on all alike. A single
    model is timed alone: its pairs name it twice and hold its blocks only, and there is no comparison.
    InputError: a bad model, name or option; raised before anything is timed. DeviceError: the board failed.
    Inconclusive: a half-width was asked for that cannot be had on this device. `clock` gives seconds, `kept` is where
    finished pairs go, and where those come from that were finished before.
    """
    options, kept = options or Options(), kept or Kept()
    pairs = checked_pairs(options)
    sources = read(models)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    with transport.launch() as process:
        facts = probe.facts(process)
        probe.check_card(card, facts)
        before = probe.weather(process)
    cores = choose_cores(options, facts)
    variants = sources[1:] or sources
    report = _Reporter(on_progress, clock, len(sources), pairs * len(variants))
    board = Board(transport, options, cores, clock)

    trials = _try_all(sources, board, report)
    key = _key(card, facts, cores, options, sources)
    begun = kept.begun(key)
    if begun is None:
        turns = choose_turns([min(trial.warmup_s) for trial in trials], options)
        pilot = None
        if options.half_width is not None:
            pilot, pairs = _pilot(sources, pairs, options.half_width, turns, board, report)
        begun = kept.begin(
            Begun(
                key=key,
                pairs=pairs,
                block_runs=turns.runs,
                couples=turns.couples,
                block_limit_s=turns.limit_s,
                started_at=started_at,
                weather=before,
                pilot=pilot,
            )
        )
    turns = Turns(begun.block_runs, begun.couples, begun.block_limit_s)
    report.total = len(sources) + begun.pairs * len(variants) - len(kept.done)
    for index in range(len(kept.done), begun.pairs * len(variants)):
        variant = variants[index % len(variants)]
        report(f"{variant.name} against {sources[0].name}")
        pair, sessions = _run_pair(sources[0], variant, options.seed + index, turns, board, report)
        launched = {
            name: Launch(pair=index, **session.model_dump(exclude={"input_shapes"}))
            for name, session in sessions.items()
        }
        kept.add(Done(pair=pair, launches=launched))
    report("done")
    check_unchanged(sources)

    after = persistently(board.weather, report.wait)
    context = Context(
        device=card.name,
        facts=facts,
        threads=options.threads,
        cores=cores,
        provider=trials[0].providers[0],
        session_config=dict(options.session_config),
        input_shapes=trials[0].input_shapes,
        inputs_sha256=None if options.inputs is None else sha256_at(options.inputs),
        block_runs=turns.runs,
        dropped_runs=options.dropped_runs,
        started_at=begun.started_at,
        weather_before=begun.weather,
        weather_after=after,
    )
    timed = [one.pair for one in kept.done]
    launches = {m.name: [one.launches[m.name] for one in kept.done if m.name in one.launches] for m in sources}
    bench = Bench(
        context=context,
        variants=[model.variant(launches[model.name]) for model in sources],
        pairs=timed,
        comparisons=[compare(sources[0].name, model.name, timed) for model in sources[1:]],
        cautions=[],
        pilot=begun.pilot,
    )
    return bench.model_copy(update={"cautions": diagnose(bench)})


def compare(baseline: str, variant: str, pairs: Sequence[Pair]) -> Comparison:
    """How many times faster `variant` is than `baseline`, with its interval over their pairs."""
    logs = [pair_log_ratio(pair) for pair in pairs_of(pairs, baseline, variant)]
    ratio, low, high = ratio_interval(logs)
    return Comparison(baseline=baseline, variant=variant, ratio=ratio, low=low, high=high, pairs=len(logs))


def _pilot(
    sources: list[Model], pairs: int, half_width: float, turns: Turns, board: Board, report: _Reporter
) -> tuple[Pilot, int]:
    """Time a few pairs to see how many it takes; they are not used again, so that the count is fixed beforehand."""
    variants = sources[1:]
    if not variants:
        raise InputError("a half-width is that of a ratio; name two models or more")
    report.total += pairs * len(variants)  # as many again, until we know
    logs: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for index, variant in enumerate(variants * pairs):
        report(f"pilot: {variant.name} against {sources[0].name}")
        pair, _ = _run_pair(sources[0], variant, board.options.seed + _PILOT_SEEDS + index, turns, board, report)
        logs[variant.name].append(pair_log_ratio(pair))
    wanted = pairs_after_pilot(list(logs.values()), half_width, pairs, report.pair_s or 0.0)
    report.total += (wanted - pairs) * len(variants)
    found = {name: ratio_half_width(values) for name, values in logs.items()}
    return Pilot(wanted_half_width=half_width, pairs=pairs, half_widths=found), wanted


def under_load(
    bench: Bench,
    models: Models,
    transport: Transport,
    options: Options,
    on_progress: Callable[[Progress], None] | None = None,
    clock: Clock = time.monotonic,
) -> Bench:
    """The bench with what else `options` ask for, model by model: at a rate of frames, without a pause, by operator."""
    sources = read(models)
    board = Board(transport, options, bench.context.cores, clock)
    report = _Reporter(on_progress, clock, 0, len(sources) * options.loads)
    found: dict[str, list[Any]] = {"paced": [], "sustained": [], "operators": []}
    for model in sources:
        if options.rate_hz:
            report(f"{model.name} at {options.rate_hz:g} Hz")
            found["paced"].append(persistently(partial(paced, board, model, options.rate_hz), report.wait))
        if options.sustain_s:
            report(f"{model.name} without a pause")
            run = partial(sustained, board, model, options.sustain_s, report.note)
            found["sustained"].append(persistently(run, report.wait))
        if options.operators:
            report(f"{model.name} by operator")
            found["operators"].append(persistently(partial(operators, board, model), report.wait))
    report("done")
    check_unchanged(sources)
    loaded = bench.model_copy(update=found)
    return loaded.model_copy(update={"cautions": diagnose(loaded)})


# --- one pair -------------------------------------------------------------------------------------------------


def _try_all(models: list[Model], board: Board, report: _Reporter) -> list[Session]:
    """Load and run each once before anything is timed: does it run there, and how long does a run take?"""
    trials: list[Session] = []
    for model in models:
        report(f"trying {model.name}")
        trials.append(persistently(partial(board.tried, model), report.wait))
        _check_same_input(models[0].name, trials[0], model.name, trials[-1])
    return trials


def _run_pair(
    baseline: Model, variant: Model, seed: int, turns: Turns, board: Board, report: _Reporter
) -> tuple[Pair, dict[str, Session]]:
    """One pair; where the connection was lost the whole pair anew, for its processes went with it."""
    return persistently(lambda: _take_turns(baseline, variant, seed, turns, board), report.wait)


def _take_turns(
    baseline: Model, variant: Model, seed: int, turns: Turns, board: Board
) -> tuple[Pair, dict[str, Session]]:
    """Start both, let them take turns, end both; `start_s` counts from before the first process started."""
    models = {model.name: model for model in (baseline, variant)}
    order = mirrored_order((baseline.name, variant.name), turns.couples, seed)
    blocks: list[Block] = []
    began = board.clock()
    with ExitStack() as stack:
        processes = {name: stack.enter_context(board.transport.launch()) for name in dict.fromkeys(order)}
        sessions = {name: board.serve(models[name], process) for name, process in processes.items()}
        for name in order:
            start_s = board.clock() - began
            with naming(name):
                samples = time_block(processes[name], turns.runs, board.options.dropped_runs, turns.limit_s)
            blocks.append(Block(variant=name, start_s=start_s, **samples.model_dump()))
    return Pair(baseline=baseline.name, variant=variant.name, seed=seed, blocks=blocks), sessions


# --- what is asked for ----------------------------------------------------------------------------------------


def _key(card: Card, facts: Facts, cores: list[int], options: Options, sources: Sequence[Model]) -> str:
    """A digest over all that must be the same for pairs to belong together."""
    asked = {**asdict(options), "shapes": sorted(options.shapes.items()), "rate_hz": 0, "sustain_s": 0, "operators": 0}
    asked["inputs"] = None if options.inputs is None else sha256_at(options.inputs)
    board = [card.name, cores, *(getattr(facts, name) for name in Facts.DECISIVE)]
    models = [(model.name, model.sha256) for model in sources]
    return hashlib.sha256(json.dumps([board, asked, models], sort_keys=True).encode()).hexdigest()


def _check_same_input(baseline: str, expected: Session, name: str, found: Session) -> None:
    """Models are compared on one input: the names may differ, the shapes may not."""
    shapes, other = list(expected.input_shapes.values()), list(found.input_shapes.values())
    if shapes != other:
        raise InputError(f"{name} takes inputs {other}, {baseline} takes {shapes}; compare models of one input")
