"""What is asked of a choice: is the budget kept, is there a better one near it, does each layer pay, is time foretold?

Each function takes a subject and returns figures; whatever is timed is timed anew, after the plan was frozen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ..devices import card
from ..errors import CheckFailed
from ..export import verify
from ..export.budget import Budget
from ..export.candidates import DENSE, Way
from ..export.compress import Job
from ..export.search import Draft, Search
from ..export.solve import Option
from ..export.timing import times_of_file
from ..export.wish import AUTO_FORMS, Wish
from ..records import Compressed, LayerDecision, LayerTime, Plan
from ..runtime.inputs import Given
from ..runtime.latency import key_of, stopwatch
from ..runtime.measure import measure
from .answers import Found
from .subject import SHARE, Subject

NEIGHBOURS, AT_ONCE = 200, 20  # plans timed roughly, and how many of them side by side
BEST, PAIRS = 5, 16  # of those measured again, in so many launch pairs
SHARES, DRAWN = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4), 4  # plans whose time is foretold: for these budgets, and by chance


def budget(subject: Subject, *, widths: bool = False) -> Found:
    """`compress --budget 0.5`, all of it: shares of the original's time, measured in launch pairs and predicted; or why
    not, with the least that any choice of ranks reaches. With `widths` as with --widths.
    """
    wish = Wish(AUTO_FORMS, time=Budget(share=SHARE), widths=widths, tile=subject.tile)
    job = Job(wish, subject.data, report=subject.report, watch=subject.watch)
    with TemporaryDirectory(dir=subject.folder) as folder:
        try:
            names = job.into(Path(folder), subject.source, "small.onnx")
        except CheckFailed as error:
            search = subject.search
            found = {"budget": SHARE, "fastest": search.fastest.ratio, "predicted": search.predicted(search.fast)}
            return Found(found, subject.anonymous(str(error)))
        done = Compressed.read(Path(folder) / names[0])
    timing = done.plan.timing
    assert timing is not None, "a plan for a budget of time has one"
    figures: dict[str, float] = {"budget": SHARE}
    for name in ("measured", "low", "high", "predicted", "screened", "fastest"):
        figures[name] = getattr(timing, name)
    figures |= {"macs": _macs_left(done.plan), "layers": float(_factored(done.plan))}
    if done.damage is not None:
        figures["damage"] = done.damage.error
        figures |= {} if done.damage.agreement is None else {"agreement": done.damage.agreement}
    return Found(figures, f"{timing.verdict}; {in_words(done.plan.layers)}")


def in_words(layers: Mapping[str, LayerDecision]) -> str:
    """The factorised layers of a plan."""
    factored = {name: layer for name, layer in layers.items() if layer.form != "dense"}
    told = [f"{name} {layer.form} {'/'.join(map(str, layer.ranks))}" for name, layer in factored.items()]
    return ", ".join(told) or "everything dense"


def _macs_left(plan: Plan) -> float:
    layers = plan.layers.values()
    return sum(layer.macs or 0 for layer in layers) / sum(layer.macs_dense or 0 for layer in layers)


def _factored(plan: Plan) -> int:
    return sum(layer.form != "dense" for layer in plan.layers.values())


def fill(subject: Subject) -> Found:
    """Seconds to fill an empty latency table for the network, again when it is full, and how many models were timed."""
    watch, took, rows = subject.watch, list[float](), list[LayerTime]()
    with TemporaryDirectory(dir=subject.folder) as folder:
        fresh = stopwatch(watch.transport, watch.facts, watch.options, Path(folder) / "table.sqlite")
        for _ in range(2):
            began = time.monotonic()
            rows = times_of_file(
                subject.source, Given(), AUTO_FORMS, subject.tile, fresh, fill=True, report=subject.report
            )
            took.append(time.monotonic() - began)
        models = fresh.table.count()
    kinds = {tuple(row.layers) for row in rows}
    return Found({"seconds": took[0], "again": took[1], "models": float(models), "kinds": float(len(kinds))})


# --- beside the plan ----------------------------------------------------------------------------------------


def neighbours(
    draft: Draft, options: Mapping[str, Sequence[Option[Way]]], count: int, generator: np.random.Generator
) -> list[Draft]:
    """Drafts that differ in one layer and should damage no more: the next rank in the same form, or another form at the
    nearest time; where these are fewer than `count`, what comes after them.
    """
    found: list[tuple[int, float, Draft]] = []
    for name, ways in options.items():
        now = next(one for one in ways if one.what == draft.ways.get(name, DENSE))
        for form in dict.fromkeys(one.what.form for one in ways):
            same = [one for one in ways if one.what.form == form and one is not now]
            harmless = [one for one in same if one.costs["damage"] <= now.costs["damage"]]
            for step, one in enumerate(sorted(harmless, key=lambda one: _apart(one, now))):
                found.append((step, float(generator.random()), _changed(draft, name, one.what)))
    return [one for *_, one in sorted(found, key=lambda change: change[:2])[:count]]


def exchanges(
    draft: Draft, options: Mapping[str, Sequence[Option[Way]]], count: int, generator: np.random.Generator
) -> list[Draft]:
    """Drafts that differ in two layers and should damage no more in all: one takes a faster way that damages more, the
    other pays with one that damages less. Few steps along a form's ranks come first, those of as many by chance.
    """
    now = {name: next(one for one in ways if one.what == draft.ways.get(name, DENSE)) for name, ways in options.items()}
    found: list[tuple[int, float, Draft]] = []
    for faster, paying in permutations(options, 2):
        for step, harm, one in _steps(options[faster], now[faster], worse=True):
            for other_step, relief, other in _steps(options[paying], now[paying], worse=False):
                if harm <= relief:
                    changed = _changed(_changed(draft, faster, one.what), paying, other.what)
                    found.append((step + other_step, float(generator.random()), changed))
    return [one for *_, one in sorted(found, key=lambda change: change[:2])[:count]]


def _steps(ways: Sequence[Option[Way]], now: Option[Way], *, worse: bool) -> Iterator[tuple[int, float, Option[Way]]]:
    """Ways that damage more and are faster, or that damage less: how many steps off, by how much, and which."""
    for form in dict.fromkeys(one.what.form for one in ways):
        further = [(one.costs["damage"] - now.costs["damage"], one) for one in ways if one.what.form == form]
        if worse:
            side = [(harm, one) for harm, one in further if harm > 0 and one.costs["time"] < now.costs["time"]]
        else:
            side = [(-harm, one) for harm, one in further if harm < 0]
        yield from ((step, *each) for step, each in enumerate(sorted(side, key=lambda change: change[0])))


def _apart(one: Option[Way], now: Option[Way]) -> float:
    if one.what.form == now.what.form:
        return float(np.abs(np.subtract(one.what.ranks, now.what.ranks)).sum())
    return abs(one.costs["time"] - now.costs["time"])


def _changed(draft: Draft, name: str, way: Way) -> Draft:
    others = {other: kept for other, kept in draft.ways.items() if other != name}
    return Draft(draft.widths, others if way.is_dense else {**others, name: way})


def beside(subject: Subject) -> Found:
    """How many times as fast as the plan the best of its neighbours is: all timed roughly, the best of them again.

    Where too few differ in one layer `alone`, others exchange damage between two.
    """
    share, draft = subject.planned
    search = subject.search
    options, generator = search.problem().layers, np.random.default_rng(subject.seed)
    near = neighbours(draft, options, NEIGHBOURS, generator)
    alone = len(near)
    near += exchanges(draft, options, NEIGHBOURS - alone, generator)
    plan, rough = search.sketch(draft), list[float]()
    for start in range(0, len(near), AT_ONCE):
        subject.report("timing neighbours", start, len(near))
        sketches = [search.sketch(one) for one in near[start : start + AT_ONCE]]
        timed = subject.watch.timed(plan, sketches, whole=True)
        rough += [timed[key_of(one)].ratio for one in sketches]
    best = sorted(range(len(near)), key=lambda index: rough[index])[:BEST]
    figures = {"budget": share, "neighbours": float(len(near)), "alone": float(alone), "layers": float(len(draft.ways))}
    if not best:
        return Found(figures, "no change of one layer damages less")
    contents = {"plan": plan} | {f"neighbour{index}": search.sketch(near[index]) for index in best}
    with TemporaryDirectory(dir=subject.folder) as folder:
        compared = launched(subject, Path(folder), contents, PAIRS)
    name = max(compared, key=lambda one: compared[one][0])
    index = int(name.removeprefix("neighbour"))
    figures |= dict(zip(("best", "low", "high"), compared[name], strict=True))
    return Found(figures | {"rough": 1 / rough[index]}, _told(draft, near[index]))


def launched(
    subject: Subject, folder: Path, contents: Mapping[str, bytes], pairs: int
) -> dict[str, tuple[float, float, float]]:
    """Models in launch pairs against the first: how many times as fast each is, with its interval."""
    for name, content in contents.items():
        (folder / f"{name}.onnx").write_bytes(content)
    bench = measure(
        [(name, folder / f"{name}.onnx") for name in contents],
        subject.watch.transport,
        card.find("host"),
        replace(subject.watch.options, pairs=pairs),
        lambda now: subject.report("launch pairs", now.done, now.total),
    )
    return {one.variant: (one.ratio, one.low, one.high) for one in bench.comparisons}


def _told(plan: Draft, other: Draft) -> str:
    """What another draft changes."""
    changed = {
        name: [draft.ways.get(name, DENSE) for draft in (plan, other)]
        for name in sorted(plan.ways.keys() | other.ways.keys())
    }
    return ", ".join(f"{name}: {_written(one)} → {_written(two)}" for name, (one, two) in changed.items() if one != two)


def _written(way: Way) -> str:
    return f"{way.form} {'/'.join(map(str, way.ranks))}".strip()


# --- layers in place, and what was foretold -----------------------------------------------------------------


def in_place(subject: Subject) -> Found:
    """Each factorised layer of the plan put back dense, on fresh samples: of the plan's time, the most that having it
    costs, with a chance of 5 %.
    """
    share, draft = subject.planned
    held = verify.in_place(subject.search, draft, subject.report)
    figures = {"budget": share, "layers": float(len(held.put_back))}
    if not held.put_back:
        return Found(figures, "everything stays dense")
    worst = max(held.put_back, key=held.costs_at_most)
    saved = float(np.median([held.ratio(name) for name in held.put_back])) - 1
    figures |= {"largest": held.costs_at_most(worst), "there": 1 - held.ratio(worst), "saved": saved}
    return Found(figures, f"{worst}: {_written(draft.ways[worst])}")


def predicted(subject: Subject) -> Found:
    """How far the time of whole networks is from what was foretold, as a share of it: plans for some budgets, and ways
    drawn by chance for every layer.
    """
    search = subject.search
    drafts = {f"budget {share:g}": search.least_damage(share) for share in SHARES if share > search.fastest.ratio}
    generator = np.random.default_rng(subject.seed)
    drafts |= {f"drawn {number}": drawn(search, generator) for number in range(DRAWN)}
    foretold = {name: search.predicted(one) for name, one in drafts.items()}
    timed = dict(zip(drafts, search.timed(*drafts.values()), strict=True))
    errors = {name: foretold[name] / one.ratio - 1 for name, one in timed.items()}
    worst = max(errors, key=lambda name: abs(errors[name]))
    figures = {"plans": float(len(drafts))}
    for kind in ("budget", "drawn"):
        mine = [abs(error) for name, error in errors.items() if name.startswith(kind)]
        figures |= {kind: max(mine)} if mine else {}
    figures["largest"] = abs(errors[worst])
    told = ", ".join(f"{name}: {foretold[name]:.3f} for {one.ratio:.3f}" for name, one in timed.items())
    return Found(figures, told)


def drawn(search: Search, generator: np.random.Generator) -> Draft:
    """A way for every layer, each as likely."""
    ways = {
        name: options[int(generator.integers(len(options)))].what for name, options in search.problem().layers.items()
    }
    return Draft({}, {name: way for name, way in ways.items() if way != DENSE})
