"""Why is one network as fast as it is beside another? A ledger of measured causes, and the changes worth making.

matching.py  which layer stands for which                     two models → pairs of units
floor.py     a network without its layers                     model → model
causes.py    each cause, and the file in which only it is gone; changes to make
ledger.py    times of those files → what each cause costs, with intervals
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from ...errors import InputError
from ...files import sha256_of
from ...records import Bar, Explained, Explanation, Improvement, Parity
from ...runtime import costs
from ...runtime.inputs import Given
from ...runtime.latency import Stopwatch
from ..fold import finished, naming, opened, record_names
from ..graphs import copied, is_large, load, serialize, sizes, write_into
from ..parity import lossy_check, require
from ..reporting import Report, silent
from ..sessions import session
from .causes import Change, Original, changes, folded, in_turn, steps
from .floor import without_layers
from .ledger import FIRST, FLOOR, IDLE, LAUNCHES, SECOND, Ledger, Times, over_launches
from .matching import matched, rows, share_matched, units

RELATED = 0.5  # of the first file's MACs, in layers that the second has too
_LEDGER, _SCREENED = 0.5, 0.75  # of the time there is: when the ledger ends, and when changes have been looked through
_AT_ONCE, _FINALISTS = 6, 6  # files tried side by side, changes that are measured again
_WORTH = 0.005  # of the second file's time: a change that gains less is none
_MOST_CONTESTS = 8  # of a ledger: beyond it intervals hardly shrink
_FOLDED = "folded"
_TOGETHER = "the best of each place together"
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


@dataclass(frozen=True)
class _File:
    """One of the two: as it was read, in one piece, and after hygiene."""

    path: Path
    raw: ir.Model
    content: bytes
    tidied: ir.Model
    macs: int
    parameters: int

    def told(self, run_s: float | None) -> Explained:
        """For the record."""
        size, sha256 = self.path.stat().st_size, sha256_of(self.path)
        return Explained(
            file=self.path.name,
            sha256=sha256,
            size_bytes=size,
            macs=self.macs,
            parameters=self.parameters,
            run_s=run_s,
        )


def explain(
    first: Path,
    second: Path,
    watch: Stopwatch,
    *,
    device: str = "host",
    options: str = "",
    time_s: float = 300.0,
    report: Report = silent,
) -> Explanation:
    """Measure for about so long; `options` are what the command was given, for those that it suggests.

    Raises InputError for files that cannot be read or run, or do not belong together.
    """
    began, tile = time.monotonic(), watch.facts.tile
    one, two = _read(first), _read(second)
    _require_one_interface(one, two)
    pairs = matched(units(one.tidied), units(two.tidied))
    told = {"device": device, "facts": watch.facts, "threads": watch.options.threads, "layers": rows(pairs)}
    if one.content == two.content:
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
    if share_matched(pairs) < RELATED:
        raise InputError(
            f"{second} is no version of {first}: only {share_matched(pairs):.0%} of its MACs are in layers that both "
            "have; give the file that it was made from"
        )
    with naming(second):
        done = steps(two.raw, two.tidied, one.tidied, tile)
    times = Times(SECOND, two.content)
    contents = {FIRST: one.content} | {step.cause: step.content for step in done[1:]}
    contents |= _floor(one, sums=watch.facts.layout == "nchwc")
    launches = _run(times, watch, contents, began + _LEDGER * time_s, "timing what each cause costs", report)
    ledger = Ledger(times, one.macs, done)
    command = f"rankfold explain {shlex.quote(str(first))} {shlex.quote(str(second))}{options}"
    better = _Better(one, two, watch, command, report).found((began + _SCREENED * time_s, began + time_s))
    explanation = Explanation(
        **told,
        launches=launches,
        first=one.told(float(times.of(FIRST).mean())),
        second=two.told(float(times.of(SECOND).mean())),
        hoped=over_launches(ledger.hoped()),
        gap=over_launches(ledger.gap()),
        bars=_bars(ledger),
        residual=over_launches(ledger.residual()),
        improvements=better.alone,
        together=better.together,
        left_out=better.left_out,
        verdict="",
    )
    return explanation.model_copy(update={"verdict": verdict(explanation)})


def verdict(found: Explanation) -> str:
    """The gain, what was promised, and the first cause, in a sentence."""
    one, two, gap = found.first, found.second, found.gap
    assert one.run_s is not None, "timed"
    assert two.run_s is not None, "timed"
    assert gap is not None, "timed"
    assert found.hoped is not None, "timed"
    fewer = one.macs / two.macs
    macs = "as many MACs as" if fewer == 1 else f"{fewer:.2f}× fewer MACs than"
    macs = macs if fewer >= 1 else f"{1 / fewer:.2f}× more MACs than"
    said = (
        f"{two.file} has {macs} {one.file}, which promises {1e3 * found.hoped.value:.3g} ms; it takes "
        f"{1e3 * two.run_s:.3g} ms, {one.run_s / two.run_s:.2f}× as fast"
    )
    if not gap.is_clear and not any(bar.costs.is_clear for bar in found.bars):
        return f"no difference that the MACs do not explain: {said}"
    clear = [bar for bar in found.bars if bar.costs.low > 0]
    if not clear:
        return f"{said}; no cause was shown"
    return f"{said}; first cause: {clear[0].cause}, {1e3 * clear[0].costs.value:+.3g} ms"


def make_into(
    folder: Path, first: Path, second: Path, name: str, made: Sequence[str], tile: int
) -> tuple[list[str], dict[str, float | None]]:
    """The second file with changes of these names, and its parity, in a scratch folder: their names, the model's last;
    and the largest relative change of a kernel by each change.

    Raises InputError for a change that there is not, or not any more; CheckFailed where an exact one is none.
    """
    one = _read(first)
    with naming(second):
        model, case = opened(second, Given(), folder)
    model, original, errors = folded(model), Original(one.tidied), dict[str, float | None]()
    for change in made:
        known = changes(model, original, tile)
        if change not in known:
            there = "; ".join(known) or "none"
            after = f" after {', '.join(errors)}" if errors else ""
            raise InputError(f"--make '{change}': {second} has no such change{after}; there are: {there}")
        errors[change] = known[change].apply(model)
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
        if is_large(raw):
            raise InputError("explain takes models that fit one ONNX file, up to 2 GB; give a smaller one")
        integer = next((node.op_type for node in raw.graph if node.op_type in _QUANTIZED), None)
        if integer is not None:
            raise InputError(f"it is quantised ({integer}): only float32 files are explained; give the one before")
        tidied, _ = opened(path, Given(), Path(folder))
        counted = costs.count(ir.to_proto(raw))
        if not counted.macs:
            lost = next((name for name, layer in counted.layers.items() if layer.macs is None), None)
            why = "it has none" if lost is None else f"those of node '{lost}' are not known"
            raise InputError(f"its MACs are what a gain is held against, and {why}; export it with fixed sizes")
        return _File(path, raw, serialize(copied(raw)), tidied, counted.macs, counted.parameters)


def _require_one_interface(one: _File, two: _File) -> None:
    taken = [", ".join(map(_told, file.tidied.graph.inputs)) for file in (one, two)]
    if taken[0] != taken[1]:
        raise InputError(f"{one.path} takes {taken[0]}, {two.path} takes {taken[1]}; give two files of one network")


def _told(value: ir.Value) -> str:
    """An input, whatever it is called; an open batch is run as 1."""
    shape = [*(size or 1 for size in sizes(value)[:1]), *sizes(value)[1:]]
    return f"{'×'.join('?' if size is None else str(size) for size in shape)} {value.dtype}"


# --- measuring ----------------------------------------------------------------------------------------------


def _floor(one: _File, *, sums: bool) -> dict[str, bytes]:
    """The first file without its layers and the idle one, where the runtime takes them."""
    made = without_layers(one.tidied, sums=sums)
    if made is None:
        return {}
    contents: dict[str, bytes] = {FLOOR: serialize(made[0]), IDLE: serialize(made[1])}
    return contents if all(_runs(content) for content in contents.values()) else {}


def _runs(content: bytes) -> bool:
    """Whether the runtime takes a file that was made here."""
    try:
        session(content, "a changed file", optimized=False)
    except InputError:
        return False
    return True


def _run(times: Times, watch: Stopwatch, contents: Mapping[str, bytes], until: float, step: str, report: Report) -> int:
    """Launches until the time is up, one contest at least; returns how many."""
    done, began = 0, time.monotonic()
    while not done or (done < _MOST_CONTESTS and time.monotonic() + (time.monotonic() - began) / done < until):
        report(step, done, _MOST_CONTESTS)
        times.add(watch, contents)
        done += 1
    report(step, _MOST_CONTESTS, _MOST_CONTESTS)
    return done * LAUNCHES


def _bars(ledger: Ledger) -> list[Bar]:
    """Largest first."""
    found = []
    if ledger.has_floor:
        about = "what was never a convolution or a matrix product does not go with the MACs"
        changed, spent = "the first file without its layers, their outputs given", over_launches(ledger.floor_costs())
        found.append(Bar(cause="never a layer", about=about, places=[], changed=changed, macs=0, costs=spent))
    for number, step in enumerate(ledger.steps[1:], 1):
        found.append(
            Bar(
                cause=step.cause,
                about=step.about,
                places=step.places,
                changed=step.changed,
                macs=step.macs,
                costs=over_launches(ledger.costs(number)),
            )
        )
    return sorted(found, key=lambda bar: -bar.costs.value)


@dataclass
class _Better:
    """Changes to the second file: each alone, roughly; the best of them again, on fresh samples, and together."""

    one: _File
    two: _File
    watch: Stopwatch
    command: str
    report: Report

    def __post_init__(self) -> None:
        self.alone: list[Improvement] = []
        self.together: Improvement | None = None
        self.left_out: list[str] = []
        self._base, self._original = folded(self.two.tidied), Original(self.one.tidied)
        self._content = serialize(copied(self._base))
        self._known: Mapping[str, Change] = {}

    def found(self, until: tuple[float, float]) -> _Better:
        """Look through all that there are until the first time, measure until the second."""
        self._fold()
        self.report("looking for changes", 0, 1)
        self._known = changes(self._base, self._original, self.watch.facts.tile)
        self.report("looking for changes", 1, 1)
        rough = self._rough(until[0])
        gains = sorted((name for name, gain in rough.items() if gain > 0), key=lambda name: -rough[name])
        self.left_out += gains[_FINALISTS:]
        self._measure(gains, until[1])
        return self

    def _fold(self) -> None:
        """What hygiene alone gains, for whoever has not folded the file."""
        if self._content == self.two.content:
            return
        times = Times(SECOND, self.two.content)
        times.add(self.watch, {_FOLDED: self._content})
        worth = over_launches(times.gains(_FOLDED))
        if worth.low > 0:
            about = "constants and BatchNormalization folded, denormal weights set to zero; the others begin there"
            command = f"rankfold fold {shlex.quote(str(self.two.path))} -o better.onnx"
            self.alone.append(Improvement(name=_FOLDED, about=about, error=None, worth=worth, command=command))

    def _rough(self, until: float) -> dict[str, float]:
        """What each change gains beyond what is worth a change, of those that there is time for."""
        found, known = dict[str, float](), list(self._known)
        for start in range(0, len(known), _AT_ONCE):
            some = known[start : start + _AT_ONCE]
            if start and time.monotonic() > until:
                self.left_out += some
                continue
            self.report("trying changes", start, len(known))
            made = self._each_alone(some)
            if made:
                times = Times(_FOLDED, self._content)
                times.add(self.watch, {name: one.content for name, one in made.items()})
                found |= {name: float(times.gains(name).mean()) - _WORTH * times.reference_s[0] for name in made}
        self.report("trying changes", len(known), len(known))
        return found

    def _measure(self, gains: Sequence[str], until: float) -> None:
        """The best alone, and as many as can be had together."""
        made = self._each_alone(gains[:_FINALISTS]) | self._all_in_turn(gains)
        if not made:
            return
        times, contents = Times(_FOLDED, self._content), {name: one.content for name, one in made.items()}
        _run(times, self.watch, contents, until, "measuring changes", self.report)
        for name, one in made.items():
            worth = over_launches(times.gains(name))
            about = ", ".join(one.errors) if name == _TOGETHER else self._known[name].about
            command = f"{self.command} {' '.join(f'--make {shlex.quote(each)}' for each in one.errors)} -o better.onnx"
            improvement = Improvement(name=name, about=about, error=one.error, worth=worth, command=command)
            if worth.low <= 0:
                self.left_out.append(name)
            elif name == _TOGETHER:
                self.together = improvement
            else:
                self.alone.append(improvement)
        self.alone.sort(key=lambda improvement: -improvement.worth.value)

    def _each_alone(self, names: Sequence[str]) -> dict[str, _Made]:
        found = {}
        for name in names:
            model = copied(self._base)
            error = self._known[name].apply(model)
            found[name] = _Made(serialize(model), {name: error})
        return self._running(found)

    def _all_in_turn(self, names: Sequence[str]) -> dict[str, _Made]:
        """One file, or none where that is a single change after all."""
        model = copied(self._base)
        errors = in_turn(model, names, self._original, self.watch.facts.tile, _FINALISTS)
        return self._running({_TOGETHER: _Made(serialize(model), errors)} if len(errors) > 1 else {})

    def _running(self, made: dict[str, _Made]) -> dict[str, _Made]:
        """Those that the runtime takes."""
        refused = [name for name, one in made.items() if not _runs(one.content)]
        self.left_out += refused
        return {name: one for name, one in made.items() if name not in refused}


@dataclass(frozen=True)
class _Made:
    """A file with changes, and the largest relative change of a kernel by each; None for one that is exact."""

    content: bytes
    errors: Mapping[str, float | None]

    @property
    def error(self) -> float | None:
        """The largest."""
        return max((error for error in self.errors.values() if error is not None), default=None)
