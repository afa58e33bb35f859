"""A model under load: at the rate at which frames arrive, and without a pause until the board is hot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..devices import probe
from ..devices.transport import pace, time_block
from ..records import Moment, Paced, Sustained
from .serving import Board, Model, naming
from .stats import undisturbed

PACED_S = 10.0  # of frames
_BLOCK_S = 1.0  # of a sustained run, between two looks at the weather
_LIMIT_S = 120.0
_LEAST_MOMENTS = 5
_COOL = 0.1  # share of the time, at the beginning, in which a board is as cool as it will be


def paced(board: Board, model: Model, rate_hz: float) -> Paced:
    """Ten seconds of frames, 20 at least."""
    frames = max(round(PACED_S * rate_hz), 20)
    with board.transport.launch() as process:
        board.serve(model, process)
        with naming(model.name):
            found = pace(process, rate_hz, frames)
    return Paced(variant=model.name, rate_hz=rate_hz, **found.model_dump())


def sustained(board: Board, model: Model, seconds: float, tell: Callable[[str, float], None]) -> Sustained:
    """Run for so long, with the weather about every second; `tell(what, seconds left)` as it goes."""
    moments: list[Moment] = []
    with board.transport.launch() as process:
        session = board.serve(model, process)
        runs = max(round(_BLOCK_S / min(session.warmup_s)), 1)
        began = board.clock()
        while (at_s := board.clock() - began) < seconds:
            tell(f"{model.name} without a pause", seconds - at_s)
            with naming(model.name):
                samples = time_block(process, runs, 0, _LIMIT_S + 20 * _BLOCK_S, rest=False).samples_s
            moments.append(Moment(at_s=at_s, run_s=undisturbed(samples), weather=probe.weather(process)))
    return Sustained(variant=model.name, moments=moments)


def missed(found: Paced) -> tuple[int, int]:
    """Frames that were dropped or answered after the next one had come, and all frames."""
    late = sum(response > 1 / found.rate_hz for response in found.responses_s)
    return late + found.dropped, len(found.responses_s) + found.dropped


def slowdown(found: Sustained) -> float | None:
    """How much longer a run takes at the end of a sustained run than at its beginning: medians over a tenth each.

    None where it was too short to tell.
    """
    times = [moment.run_s for moment in found.moments]
    if len(times) < _LEAST_MOMENTS:
        return None
    count = max(round(_COOL * len(times)), 1)
    return float(np.median(times[-count:]) / np.median(times[:count]))
