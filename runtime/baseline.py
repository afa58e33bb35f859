"""An old bench against a new one: has a model become slower since?

Seconds of two days are not compared. Each bench says how its models stand to its own baseline, timed side by side; with
the same file as baseline in both, the ratio of the two ratios is what has changed since, and slow days cancel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from ..errors import CheckFailed, Inconclusive, InputError
from ..records import Bench, Change, Changes, Context, Facts
from .gate import ON_THE_LIMIT, pairs_to_decide, standing
from .stats import Interval, pair_log_ratio, pairs_of, welch_interval

# What decides how fast a model runs, in the order in which a difference is named. Not here: what the machine was busy
# with, free memory, the kernel's and Python's versions, and the length of the blocks, which follows the speed.
_KEYS = ("device", "provider", "threads", "cores", "session_config", "input_shapes", "inputs_sha256", "dropped_runs")


def changes(old: Bench, new: Bench) -> Changes:
    """How long each model of both takes now, as a multiple of then: by name, with a 95 % interval (Welch's t).

    Raises InputError, naming what differs, for benches that cannot be compared.
    """
    require_alike(old.context, new.context)
    first, second = old.variants[0], new.variants[0]
    if first.sha256 != second.sha256:
        raise InputError(
            f"the baselines are two files, {first.name} ({first.sha256[:12]}) and {second.name} "
            f"({second.sha256[:12]}); measure both against one and the same"
        )
    before, now = ({v.name: v.sha256 for v in bench.variants[1:]} for bench in (old, new))
    names = [name for name in before if name in now]
    if not names:
        raise InputError(f"no model has the same name in both: {', '.join(before)} then, {', '.join(now)} now")
    found = []
    for name in names:
        then_logs, now_logs = _logs(old, name), _logs(new, name)
        time = welch_interval(then_logs, now_logs)
        found.append(
            Change(
                variant=name,
                same_file=before[name] == now[name],
                then=math.exp(fmean(then_logs)),
                now=math.exp(fmean(now_logs)),
                time=time.value,
                low=time.low,
                high=time.high,
                pairs=(len(then_logs), len(now_logs)),
            )
        )
    return Changes(
        baseline=first.name, changes=found, only_then=sorted(before - now.keys()), only_now=sorted(now - before.keys())
    )


def require_alike(old: Context, new: Context) -> None:
    """Raise InputError naming the first key in which two contexts differ, with both values."""
    for key, then, now in _settings(old, new):
        if then != now:
            raise InputError(
                f"the benches differ in {key}: {_short(then)} then, {_short(now)} now; measure the old model again"
            )


def judge(found: Changes, limit: float) -> str:
    """One line saying that every model takes at most `limit` times as long as then, with its whole interval.

    CheckFailed if a whole interval violates it; Inconclusive if the limit lies inside one and none violates it.
    """
    times = {change.variant: Interval(change.time, change.low, change.high) for change in found.changes}
    stands = {name: standing(time, limit) for name, time in times.items()}
    lines = {change.variant: f"{_sentence(change)}, the limit is {limit:g}" for change in found.changes}
    if failed := [lines[name] for name, stand in stands.items() if stand == "fails"]:
        raise CheckFailed(f"gate fails: {'; '.join(failed)}")
    if open_ := [change for change in found.changes if stands[change.variant] == "undecided"]:
        needed = [pairs_to_decide(limit, times[change.variant], min(change.pairs)) for change in open_]
        counts = [pairs for pairs in needed if pairs is not None]
        advice = f"measure both with {max(counts)} pairs" if len(counts) == len(needed) else ON_THE_LIMIT
        raise Inconclusive(f"gate is undecided: {'; '.join(lines[change.variant] for change in open_)}; {advice}")
    return f"gate holds: {'; '.join(lines.values())}"


def _sentence(change: Change) -> str:
    return f"{change.variant} takes {change.time:.3f} of its old time [{change.low:.3f}, {change.high:.3f}]"


def _settings(old: Context, new: Context) -> Iterator[tuple[str, Any, Any]]:
    for key in _KEYS:
        yield key, getattr(old, key), getattr(new, key)
    for key in Facts.DECISIVE:
        yield key, getattr(old.facts, key), getattr(new.facts, key)
    governors = [sorted({c.governor for c in context.weather_before.cores if c.governor}) for context in (old, new)]
    yield "governor", governors[0], governors[1]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _logs(bench: Bench, variant: str) -> list[float]:
    baseline = bench.variants[0].name
    pairs = pairs_of(bench.pairs, baseline, variant)
    named = {block.variant for pair in pairs for block in pair.blocks}
    if len(pairs) < 2 or not {baseline, variant} <= named:
        raise InputError(f"expected two pairs or more of {variant} against {baseline}, found {len(pairs)}; bench again")
    return [pair_log_ratio(pair) for pair in pairs]
