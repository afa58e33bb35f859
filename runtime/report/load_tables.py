"""Tables of what was asked for beside the pairs: frames at a rate, runs without a pause, time by layer and operator."""

from __future__ import annotations

from ...records import OperatorTable
from .. import load, operators
from .assemble import Report
from .tables import Cell, Column, Table
from .units import milliseconds, one_line

_ROWS = 40  # of a table by layer; all are in bench.json


def load_tables(report: Report) -> list[Table]:
    """Those that there are, in the order of the command's options."""
    bench = report.bench
    tables = [_paced(report), _sustained(report), *map(_layers, bench.operators), *map(_kinds, bench.operators)]
    return [table for table in tables if table.rows]


def _table(caption: str, columns: list[Column], rows: list[list[Cell]]) -> Table:
    return Table(caption, columns, rows, ["other"] * len(rows))


def _paced(report: Report) -> Table:
    columns = [
        Column("variant", kind="name"),
        Column("rate", "Hz"),
        Column("frames"),
        Column("missed", "their deadline"),
        Column("dropped", "while a run was on"),
        Column("slowest answer", "from a frame's arrival"),
    ]
    rows = []
    for paced in report.bench.paced:
        late, frames = load.missed(paced)
        slowest = milliseconds(max(paced.responses_s)) if paced.responses_s else "none"
        cells = [Cell(one_line(paced.variant)), Cell(f"{paced.rate_hz:g}"), Cell(str(frames))]
        rows.append([*cells, Cell(str(late), alarm=late > 0), Cell(str(paced.dropped)), Cell(slowest)])
    return _table("At the rate of the frames", columns, rows)


def _sustained(report: Report) -> Table:
    columns = [
        Column("variant", kind="name"),
        Column("time", "s"),
        Column("a run at the end", "× its first time"),
        Column("hottest", "°C"),
    ]
    rows = []
    for sustained in report.bench.sustained:
        slower = load.slowdown(sustained)
        heat = [t for moment in sustained.moments for t in moment.weather.temperatures_c.values()]
        at_end = Cell("too short") if slower is None else Cell(f"{slower:.3f}", alarm=slower > 1.05)
        cells = [Cell(one_line(sustained.variant)), Cell(f"{sustained.moments[-1].at_s:.0f}")]
        hottest = f"{max(heat):.0f}" if heat else "not measured"
        rows.append([*cells, at_end, Cell(hottest)])
    return _table("Without a pause", columns, rows)


def _layers(table: OperatorTable) -> Table:
    columns = [Column("layer", kind="name"), Column("time", "µs"), Column("share", "%")]
    return _table(f"Time of {one_line(table.variant)} by layer", columns, _shares(operators.by_layer(table)[:_ROWS]))


def _kinds(table: OperatorTable) -> Table:
    columns = [Column("operator", kind="name"), Column("time", "µs"), Column("share", "%")]
    caption = (
        f"Time of {one_line(table.variant)} by operator: reorders and transposes {operators.layout_share(table):.1%}, "
        f"all nodes {operators.accounted(table):.1%} of a profiled run"
    )
    return _table(caption, columns, _shares(operators.by_operator(table)))


def _shares(shares: list[operators.Share]) -> list[list[Cell]]:
    return [
        [Cell(one_line(share.name)), Cell(f"{share.seconds * 1e6:.1f}"), Cell(f"{share.share * 100:.1f}")]
        for share in shares
    ]
