"""Rows for github-action-benchmark's `customSmallerIsBetter` (its README: name, unit, value, range, extra)."""

from __future__ import annotations

import json
from collections.abc import Iterator

from .assemble import Report, Row
from .units import ratio_interval

_Entry = dict[str, str | float]


def dashboard_text(report: Report) -> str:
    """A JSON array, smaller is better in every row; what was not measured has no row."""
    rows = [entry for row in report.rows for entry in _entries(report, row)]
    return json.dumps(rows, indent=1) + "\n"


def _entries(report: Report, row: Row) -> Iterator[_Entry]:
    where = f"{report.bench.context.device}, {report.bench.context.threads} threads"
    if row.comparison:
        fast, slow = 1 / row.comparison.high, 1 / row.comparison.low
        yield _entry(row, "relative latency", "× baseline", 1 / row.comparison.ratio) | {
            "range": f"± {(slow - fast) / 2:.4f}",
            "extra": f"ratio {ratio_interval(row.comparison)} to {row.comparison.baseline}; {where}",
        }
    measured = (
        ("latency p50", "ms", _scaled(row.quantile_s(0.5), 1e3)),
        ("session creation", "ms", _scaled(row.session_creation_s, 1e3)),
        ("peak memory", "bytes", row.peak_rss_bytes),
        ("size", "bytes", row.variant.size_bytes),
    )
    for what, unit, value in measured:
        if value is not None:
            yield _entry(row, what, unit, value) | {"extra": where}


def _entry(row: Row, what: str, unit: str, value: float) -> _Entry:
    return {"name": f"{row.name}: {what}", "unit": unit, "value": value}


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
