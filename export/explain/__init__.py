"""Why is one network as fast as it is beside another? A ledger of measured causes, and the changes worth making.

matching.py  which layer stands for which                     two models → pairs of units
floor.py     a network without its layers                     model → model
causes.py    each cause, and the file in which only it is gone; changes to make
ledger.py    times of those files → what each cause costs, with intervals
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from ...errors import InputError
from ...files import sha256_of
from ...records import Bar, Explained, Explanation, Improvement, Parity, Seconds
from ...runtime import costs
from ...runtime.inputs import Given
from ...runtime.latency import Stopwatch
from ..fold import finished, naming, opened, record_names
from ..graphs import load, serialize, sizes, write_into
from ..parity import lossy_check, require
from ..reporting import Report, silent
from .causes import Change, changes, steps
from .floor import without_layers
from .ledger import LAUNCHES, Ledger, Runs, seconds, worth
from .matching import matched, rows, share_matched, units

RELATED = 0.5  # of the first file's MACs, in layers that the second has too
_LEDGER, _SCREENED = 0.5, 0.75  # of the time there is: when the ledger ends, and when changes have been looked through
_AT_ONCE, _FINALISTS = 8, 6  # files tried side by side, changes that are measured again
_TOGETHER = "the best of each place together"
_MOST_CONTESTS = 8  # of a ledger: beyond it intervals hardly shrink


@dataclass(frozen=True)
class _File:
    """One of the two: as it was read, in one piece, and after hygiene."""

    path: Path
    raw: ir.Model
    content: bytes
    tidied: ir.Model

    def told(self, times: Seconds | None) -> Explained:
        """For the record."""
        counted = costs.count(self.path)
        return Explained(
            file=self.path.name,
            sha256=sha256_of(self.path),
            size_bytes=self.path.stat().st_size,
            macs=counted.macs or 0,
            parameters=counted.parameters,
            seconds=times,
        )


def explain(
    first: Path, second: Path, watch: Stopwatch, *, device: str = "host", time_s: float = 300.0, report: Report = silent
) -> Explanation:
    """Measure for about so long. Raises InputError for files that cannot be read or run, or do not belong together."""
    began, tile = time.monotonic(), watch.facts.tile
    one, two = _read(first), _read(second)
    _require_one_interface(one, two)
    pairs = matched(units(one.tidied), units(two.tidied))
    if share_matched(pairs) < RELATED:
        raise InputError(
            f"{second} is no version of {first}: only {share_matched(pairs):.0%} of its MACs are in layers that both "
            "have; give the file that it was made from"
        )
    told = {"device": device, "facts": watch.facts, "threads": watch.options.threads, "layers": rows(pairs)}
    if serialize(one.tidied) == serialize(two.tidied) and one.content == two.content:
        return Explanation(
            **told,
            launches=0,
            first=one.told(None),
            second=two.told(None),
            hoped=None,
            gap=None,
            bars=[],
            residual=None,
            improvements=[],
            left_out=[],
            verdict="no difference: the two files are the same",
        )
    with naming(second):
        done = steps(two.raw, two.tidied, one.tidied, tile)
    floor = without_layers(one.tidied)
    ledger = Ledger(Runs(two.content), one.content, _macs(one), floor and serialize(floor), done)
    contents = [one.content, *(step.content for step in done), *([] if ledger.floor is None else [ledger.floor])]
    launches = _timed(ledger.runs, watch, contents, began + _LEDGER * time_s, report)
    bars = _bars(ledger)
    better = _improvements(one, two, watch, tile, (began + _SCREENED * time_s, began + time_s), report)
    explanation = Explanation(
        **told,
        launches=launches,
        first=one.told(seconds(ledger.runs.of(one.content))),
        second=two.told(seconds(ledger.runs.of(two.content))),
        hoped=seconds(ledger.runs.of(one.content) * ledger.second.macs / ledger.first_macs),
        gap=seconds(ledger.gap()),
        bars=bars,
        residual=seconds(ledger.residual()),
        improvements=better.found,
        together=better.together,
        left_out=better.left_out,
        verdict="",
    )
    return explanation.model_copy(update={"verdict": verdict(explanation)})


def verdict(found: Explanation) -> str:
    """The gain, what was promised, and the first cause, in a sentence."""
    one, two, gap = found.first, found.second, found.gap
    assert one.seconds is not None, "timed"
    assert two.seconds is not None, "timed"
    assert gap is not None, "timed"
    assert found.hoped is not None, "timed"
    fewer = one.macs / two.macs
    macs = f"{fewer:.2f}× fewer MACs" if fewer >= 1 else f"{1 / fewer:.2f}× more MACs"
    said = (
        f"{two.file} has {macs} than {one.file}, which promises {1e3 * found.hoped.value:.3g} ms; it takes "
        f"{1e3 * two.seconds.value:.3g} ms, {one.seconds.value / two.seconds.value:.2f}× as fast"
    )
    if not gap.is_clear and not any(bar.costs.is_clear for bar in found.bars):
        return f"no difference that the MACs do not explain: {said}"
    clear = [bar for bar in found.bars if bar.costs.is_clear and bar.costs.value > 0]
    if not clear:
        return f"{said}; no cause was shown"
    first = max(clear, key=lambda bar: bar.costs.value)
    return f"{said}; first cause: {first.cause}, {1e3 * first.costs.value:+.3g} ms"


def make_into(
    folder: Path, first: Path, second: Path, name: str, made: Sequence[str], tile: int
) -> tuple[list[str], dict[str, float | None]]:
    """The second file with changes of these names, and its parity, in a scratch folder: their names, the model's last;
    and the largest relative change of a kernel by each change.

    Raises InputError for a change that there is not, and for two at one place; CheckFailed where an exact one is none.
    """
    one = _read(first)
    with naming(second):
        model, case = opened(second, Given(), folder)
    known = {change.name: change for change in changes(model, one.tidied, tile)}
    unknown = next((name for name in made if name not in known), None)
    if unknown is not None:
        raise InputError(f"--make '{unknown}': {second} has no such change; there are: {'; '.join(known) or 'none'}")
    places = [known[name].place for name in made]
    if len(set(places)) < len(places):
        raise InputError(f"--make: two changes of '{max(places, key=places.count)}'; give one of them")
    errors = {name: known[name].apply(model) for name in made}
    model, what = finished(model, None), "make the changes"
    if any(error is not None for error in errors.values()):
        content = case.content(model)
        case.checks.extend(require(lossy_check(truth, content, what)) for truth in case.originals)
    else:
        case.exact(model, what)
    parity_name = record_names(name)[0]
    Parity(checks=case.checks).write(folder / parity_name)
    return [parity_name, *write_into(folder, name, model)], errors


def _read(path: Path) -> _File:
    with naming(path), TemporaryDirectory(prefix="rankfold-") as folder:
        raw = load(path)
        tidied, _ = opened(path, Given(), Path(folder))
        content = serialize(ir.from_proto(ir.to_proto(raw)))
        if not costs.count(ir.to_proto(raw)).macs:
            raise InputError("its MACs cannot be counted: the sizes of an input are open; export it with fixed ones")
    return _File(path, raw, content, tidied)


def _macs(file: _File) -> int:
    return costs.count(ir.to_proto(file.raw)).macs or 0


def _require_one_interface(one: _File, two: _File) -> None:
    taken = [", ".join(_told(value) for value in file.tidied.graph.inputs) for file in (one, two)]
    if taken[0] != taken[1]:
        raise InputError(f"{one.path} takes {taken[0]}, {two.path} takes {taken[1]}; give two files of one network")


def _told(value: ir.Value) -> str:
    """An input, whatever its batch."""
    return f"'{value.name}' {'×'.join('?' if size is None else str(size) for size in sizes(value)[1:])} {value.dtype}"


# --- measuring ----------------------------------------------------------------------------------------------


def _timed(runs: Runs, watch: Stopwatch, contents: Sequence[bytes], until: float, report: Report) -> int:
    """Launches until the time is up, one contest at least; returns how many."""
    done, began = 0, time.monotonic()
    while not done or (time.monotonic() + (time.monotonic() - began) / done < until and done < _MOST_CONTESTS):
        report("timing what each cause costs", done, _MOST_CONTESTS)
        runs.add(watch, contents)
        done += 1
    report("timing what each cause costs", _MOST_CONTESTS, _MOST_CONTESTS)
    return done * LAUNCHES


def _bars(ledger: Ledger) -> list[Bar]:
    """Largest first."""
    found = []
    if ledger.floor is not None:
        about = "what was never a convolution or a matrix product does not go with the MACs"
        changed = "the first file without its layers, their outputs given"
        found.append(
            Bar(
                cause="never a layer",
                about=about,
                places=[],
                changed=changed,
                macs=0,
                costs=seconds(ledger.floor_costs()),
            )
        )
    for number, step in enumerate(ledger.steps[1:], 1):
        found.append(
            Bar(
                cause=step.cause,
                about=step.about,
                places=step.places,
                changed=step.changed,
                macs=step.macs,
                costs=seconds(ledger.costs(number)),
            )
        )
    return sorted(found, key=lambda bar: -bar.costs.value)


@dataclass(frozen=True)
class _Better:
    found: list[Improvement]
    together: Improvement | None
    left_out: list[str]


def _improvements(
    one: _File, two: _File, watch: Stopwatch, tile: int, until: tuple[float, float], report: Report
) -> _Better:
    """Each change alone, roughly; the best of them again, on fresh samples, with all of them in one file."""
    known = changes(two.tidied, one.tidied, tile)
    files = {change.name: _changed(two.tidied, [change]) for change in known}
    base, rough, left_out = serialize(two.tidied), dict[str, Seconds](), list[str]()
    for start in range(0, len(known), _AT_ONCE):
        names = [change.name for change in known[start : start + _AT_ONCE]]
        if start and time.monotonic() > until[0]:
            left_out += names
            continue
        report("trying changes", start, len(known))
        runs = Runs(base)
        runs.add(watch, [files[name][0] for name in names])
        rough |= worth(runs, {name: files[name][0] for name in names})
    report("trying changes", len(known), len(known))
    gains = [change for change in known if change.name in rough and rough[change.name].value > 0]
    chosen = sorted(gains, key=lambda change: -rough[change.name].value)[:_FINALISTS]
    if not chosen:
        return _Better([], None, left_out)
    contents = {change.name: files[change.name] for change in chosen}
    places: dict[str, Change] = {}
    for change in chosen:
        places.setdefault(change.place, change)
    if len(places) > 1:
        contents[_TOGETHER] = _changed(two.tidied, list(places.values()))
    runs = Runs(base)
    _timed(runs, watch, [content for content, _ in contents.values()], until[1], report)
    gained = worth(runs, {name: content for name, (content, _) in contents.items()})
    about = {change.name: change.about for change in chosen}
    found = [
        Improvement(
            name=name,
            about=about.get(name, "all of these changes"),
            error=error,
            worth=gained[name],
            command=_command(one.path, two.path, [name] if name in about else [c.name for c in places.values()]),
        )
        for name, (_, error) in contents.items()
    ]
    shown = [improvement for improvement in found if improvement.worth.low > 0]
    alone = sorted((i for i in shown if i.name in about), key=lambda i: -i.worth.value)
    return _Better(alone, next((i for i in shown if i.name not in about), None), left_out)


def _changed(model: ir.Model, made: Sequence[Change]) -> tuple[bytes, float | None]:
    """A copy with these changes, and the largest error of all of them."""
    copy = ir.from_proto(ir.to_proto(model))
    errors = [error for change in made if (error := change.apply(copy)) is not None]
    return serialize(copy), max(errors, default=None)


def _command(first: Path, second: Path, names: Sequence[str]) -> str:
    quoted = " ".join(f"--make {shlex.quote(name)}" for name in names)
    return f"rankfold explain {shlex.quote(str(first))} {shlex.quote(str(second))} {quoted} -o better.onnx"
