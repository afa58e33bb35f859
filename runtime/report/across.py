"""The same files on several devices: who gains where, in times and ratios.        Reports → Across"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...records import Bench, Caution
from .assemble import Report, assemble
from .tables import TOO_FEW, Cell, Column, Table, ratio_cell, table_of, time_cells
from .units import one_line

# What must be the same on all devices for their rows to say the same thing of the same files.
_KEYS = ("threads", "provider", "session_config", "input_shapes", "inputs_sha256", "dropped_runs")


@dataclass(frozen=True)
class Across:
    """What is said of several devices, `speeds` where there is a baseline; cautions with their devices' names."""

    title: str
    where: list[str]
    sentences: list[str]
    speeds: Table | None
    times: Table
    devices: Table
    cautions: list[tuple[str, Caution]]


def across(paths: Sequence[Path]) -> Across:
    """Read bench records, one a device; InputError, naming what differs, for those that do not fit together."""
    reports = [assemble(path) for path in paths]
    _require_alike(paths, [report.bench for report in reports])
    first, names = reports[0], [_device(report) for report in reports]
    times, speeds = [], []
    for index, row in enumerate(first.rows):
        rows, name = [report.rows[index] for report in reports], one_line(row.name)
        times.append((Column(name, "ms, p50"), time_cells([one.quantile_s(0.5) for one in rows], TOO_FEW)))
        ratios = [ratio_cell(report, one) for report, one in zip(reports, rows, strict=True)]
        speeds += [(Column(name, "×, 95 % interval"), ratios)] if index else []
    context = first.bench.context
    return Across(
        title=f"{', '.join(one_line(row.name) for row in first.rows)} on {len(reports)} devices",
        where=[f"{context.threads} thread{'' if context.threads == 1 else 's'}", one_line(context.provider)],
        sentences=list(_who_gains(reports)),
        speeds=_by_device(f"Speed-up over {one_line(first.baseline.name)}", names, speeds) if speeds else None,
        times=_by_device("Time of a run", names, times),
        devices=_by_device("The devices", names, list(_context(reports))),
        cautions=_cautions(reports),
    )


def _require_alike(paths: Sequence[Path], benches: Sequence[Bench]) -> None:
    seen: dict[str, Path] = {}
    for path, bench in zip(paths, benches, strict=True):
        device = bench.context.device
        if device in seen:
            raise InputError(f"{path} and {seen[device]} are both of '{device}'; give one record a device")
        seen[device] = path
        for (key, wanted), (_, found) in zip(_settings(benches[0]), _settings(bench), strict=True):
            if found != wanted:
                raise InputError(f"{path} and {paths[0]} differ in {key}; measure the same on every device")


def _settings(bench: Bench) -> Iterator[tuple[str, object]]:
    yield "the names of their models", [variant.name for variant in bench.variants]
    yield "their files (sha256)", [variant.sha256 for variant in bench.variants]
    yield from ((key, getattr(bench.context, key)) for key in _KEYS)


def _who_gains(reports: Sequence[Report]) -> Iterator[str]:
    """A sentence a variant. A gain, or a loss, is one only if the whole interval says so."""
    for index, row in enumerate(reports[0].rows[1:], 1):
        found = [(_device(report), report.rows[index].comparison) for report in reports]
        parts = {
            "faster on": [name for name, c in found if c and c.low > 1],
            "slower on": [name for name, c in found if c and c.high < 1],
            "neither, by its interval, on": [name for name, c in found if c and c.low <= 1 <= c.high],
            "not compared on": [name for name, c in found if c is None],
        }
        said = "; ".join(f"{words} {', '.join(names)}" for words, names in parts.items() if names)
        yield f"{one_line(row.name)} is {said}."


def _cautions(reports: Sequence[Report]) -> list[tuple[str, Caution]]:
    """Each once, with all devices that it is of."""
    heard: dict[tuple[str, str], tuple[list[str], Caution]] = {}
    for report in reports:
        for caution in report.bench.cautions:
            heard.setdefault((caution.what, caution.remedy), ([], caution))[0].append(_device(report))
    return [(", ".join(names), caution) for names, caution in heard.values()]


def _device(report: Report) -> str:
    return one_line(report.bench.context.device)


def _by_device(caption: str, names: Sequence[str], columns: list[tuple[Column, list[Cell]]]) -> Table:
    return table_of(caption, [(Column("device", kind="name"), [Cell(name) for name in names]), *columns])


def _context(reports: Sequence[Report]) -> Iterator[tuple[Column, list[Cell]]]:
    contexts = [report.bench.context for report in reports]
    told = {
        "processor": [f"{c.facts.cpu_model or 'not known'}, {c.facts.architecture}" for c in contexts],
        "tile": [str(c.facts.tile) for c in contexts],
        "cores": [", ".join(map(str, c.cores)) or "any" for c in contexts],
        "governor": [", ".join(sorted({k.governor or "" for k in c.weather_before.cores})) for c in contexts],
        "onnxruntime": [c.facts.onnxruntime_version for c in contexts],
        "started": [c.started_at for c in contexts],
    }
    for head, texts in told.items():
        yield Column(head, kind="name"), [Cell(one_line(text)) for text in texts]
