"""The commands that measure, and those that judge what was measured. cli.py gives them their names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .errors import DeviceError, Inconclusive, InputError, RankfoldError
from .files import require_writable

if TYPE_CHECKING:
    from .records import Bench, Card, Changes

BENCH_EXAMPLES = (
    'Examples:  [bold]rankfold bench dense.onnx compact.onnx --gate "compact <= 0.8 * dense"[/]   '
    "[bold]rankfold bench a.onnx b.onnx --half-width 0.5% --threads 2[/]   "
    "[bold]rankfold bench a.onnx b.onnx --device pi4,pi5 --governor performance; rankfold report bench.pi*.json[/]"
)
COMPARE_EXAMPLES = "Example:  [bold]rankfold compare main.json bench.json --gate 1.02 --summary gate.md[/]"

_MOST_CORES = 1 << 16
SummaryOption = Annotated[
    Path | None, typer.Option(help="Append the verdict and a table in Markdown, e.g. $GITHUB_STEP_SUMMARY.")
]


def bench(
    models: Annotated[list[Path], typer.Argument(help="ONNX files, the baseline first; or a run folder.")],
    device: Annotated[str, typer.Option(help="A device that `rankfold devices list` names; several: pi4,pi5")] = "host",
    fleet: Annotated[Path | None, typer.Option(help="Instead: a TOML file that lists devices, all at once.")] = None,
    threads: options.ThreadsOption = 1,
    cores: Annotated[str | None, typer.Option(help="Core mask, e.g. 0,2-3.  [default: the last ones]")] = None,
    provider: Annotated[str, typer.Option(help="ONNX Runtime execution provider.")] = "cpu",
    session_config: Annotated[list[str] | None, typer.Option(help="key=value, checked against known keys.")] = None,
    pairs: Annotated[int | None, typer.Option(min=2, help="Launch pairs a variant.  [default: 8, or 24]")] = None,
    half_width: Annotated[
        str | None, typer.Option(help="Instead of --pairs: of the interval, e.g. 0.5%; a pilot chooses the count.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides the order of the blocks.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the record goes.")] = Path("bench.json"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the pairs that an interrupted command kept beside it.")
    ] = False,
    shape: options.ShapeOption = None,
    inputs: options.InputsOption = None,
    governor: Annotated[
        str | None, typer.Option(help="Frequency governor meanwhile, e.g. performance; then what it was.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Then run each on frames that arrive at this rate, in Hz.")] = None,
    sustain: Annotated[float | None, typer.Option(help="Then run each without a pause for so many seconds.")] = None,
    operators: Annotated[bool, typer.Option("--operators", help="Then profile each: time by layer, operator.")] = False,
    sweep: Annotated[
        list[str] | None, typer.Option(help="Once for each of threads=1,2, cores=0,0+1 or clusters, spinning=on,off.")
    ] = None,
    gate: Annotated[str | None, typer.Option(help="Exit 1 unless this holds, e.g. compact <= 0.8 * dense")] = None,
    summary: SummaryOption = None,
) -> None:
    """Measure models side by side, in paired launches, and write every sample to bench.json."""
    from .devices import card
    from .runtime import gate as gates
    from .runtime.inputs import parse_shapes
    from .runtime.summary import bench_summary, heading
    from .stages import measure_models, named, sweep_models
    from .tables import print_bench, print_sweep

    wanted = gates.parse(gate) if gate is not None else None
    if summary is not None:
        require_writable(summary)  # now, not after minutes of measuring
    if wanted is not None:
        gates.check_names(wanted, [name for name, _ in named(models)])
    asked: dict[str, Any] = {
        "threads": threads,
        "cores": None if cores is None else core_mask(cores),
        "provider": provider,
        "session_config": _keys_and_values(session_config or []),
        "pairs": pairs,
        "half_width": None if half_width is None else _share("--half-width", half_width),
        "seed": seed,
        "shapes": parse_shapes(shape or ()),
        "inputs": inputs,
        "governor": governor,
        "rate_hz": rate,
        "sustain_s": sustain,
        "operators": operators,
    }
    if fleet is not None or "," in device:
        if sweep or wanted is not None or summary is not None or resume:
            raise InputError("--gate, --summary, --sweep and --resume are for one device; leave them out")
        if fleet is not None and device != "host":
            raise InputError("give the devices by --device or by --fleet, not both")
        cards = card.find_all(device.split(",")) if fleet is None else card.fleet(fleet)
        _bench_fleet(models, cards, output, asked)
        return
    if wanted is not None and card.find(device).is_emulated:
        raise InputError(f"--gate judges times, and device '{device}' is emulated; see rankfold cost --at-most")
    if sweep:
        if resume:
            raise InputError("--resume goes on with one setting; leave out --sweep")
        if wanted is not None or summary is not None:
            raise InputError("--gate and --summary judge one setting; leave out --sweep")
        print_sweep(sweep_models(models, output=output, device=device, sweep=sweep, **asked))
        return
    try:
        record = measure_models(models, output=output, device=device, resume=resume, **asked)
    except Inconclusive as error:  # the half-width cannot be had
        _append(summary, heading(str(error)) + "\n")
        raise
    print_bench(record)
    print(output)
    _conclude(
        None if wanted is None else lambda: gates.judge(wanted, record),
        lambda verdict: bench_summary(record, verdict),
        summary,
    )


def _bench_fleet(models: list[Path], cards: list[Card], output: Path, asked: dict[str, Any]) -> None:
    from .fleet import measure_fleet
    from .tables import print_fleet

    outcomes = measure_fleet(models, cards, output=output, **asked)
    records = [outcome.path for outcome in outcomes if outcome.failure is None]
    failures = {outcome.device: str(outcome.failure) for outcome in outcomes if outcome.failure is not None}
    print_fleet(records, failures)
    for path in records:
        print(path)
    if failures:
        raise DeviceError(f"{len(failures)} of {len(outcomes)} devices failed: {', '.join(failures)}")


def compare(
    old: Annotated[Path, typer.Argument(help="A bench.json of then, such as the one kept for the main branch.")],
    new: Annotated[Path, typer.Argument(help="A bench.json of now, with the same first model.")],
    gate: Annotated[
        float | None, typer.Option(min=0.01, help="Exit 1 if a model takes over this multiple of its old time.")
    ] = None,
    summary: SummaryOption = None,
) -> None:
    """Compare two benches of one device: has a model become slower since, against the common baseline?"""
    from .runtime import baseline
    from .runtime.summary import changes_summary
    from .tables import print_changes

    if summary is not None:
        require_writable(summary)
    found: Changes = baseline.changes(*(_bench_at(path) for path in (old, new)))
    print_changes(found)
    _conclude(
        None if gate is None else lambda: baseline.judge(found, gate),
        lambda verdict: changes_summary(found, verdict),
        summary,
    )


def _bench_at(path: Path) -> Bench:
    from .records import Bench

    record = Bench.read(path)
    if record.agreements:
        raise InputError(f"{path}: of an emulated device, which has no times; compare counts: rankfold cost --against")
    if len(record.variants) < 2:
        raise InputError(
            f"{path}: expected a bench of two models or more, found {len(record.variants)}; bench it again"
        )
    return record


def _conclude(judge: Callable[[], str] | None, page: Callable[[str | None], str], summary: Path | None) -> None:
    """Print the verdict; the summary is written whatever the verdict, which then decides the exit code."""
    from .terminal import plain

    verdict, refusal = None, None
    try:
        verdict = judge() if judge is not None else None
    except RankfoldError as error:
        verdict, refusal = str(error), error
    _append(summary, page(verdict))
    if refusal is not None:
        raise refusal
    if verdict is not None:
        print(plain(verdict))


def _append(summary: Path | None, text: str) -> None:
    if summary is not None:
        with summary.open("a", encoding="utf-8") as file:
            file.write(text)


# --- arguments ----------------------------------------------------------------------------------------------


def core_mask(text: str) -> tuple[int, ...]:
    """`0,2-3` → (0, 2, 3)."""
    cores: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        known = first.isdecimal() and (not dash or last.isdecimal())
        if not known or not int(first) <= int(last or first) < _MOST_CORES:
            raise InputError(f"--cores {text!r}: expected core numbers such as 0,2-3")
        cores += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(cores))


def _share(option: str, text: str) -> float:
    """`0.5%` or `0.005`."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise InputError(f"{option} {text!r}: expected a share such as 0.5% or 0.005") from error


def _keys_and_values(texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"--session-config {text!r}: expected key=value")
        found[key] = value
    return found
