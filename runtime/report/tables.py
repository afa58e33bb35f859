"""Every table of the page as plain text cells, to be escaped by whoever writes them, and the CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ...records import Agreement, LayerDecision, ParityCheck
from .answer import realised_share
from .assemble import Report, Row
from .units import (
    NOT_MEASURED,
    aligned,
    one_line,
    quantity,
    ratio_interval,
    ratio_text,
    score_interval,
    score_text,
    si,
)

TOO_FEW = "too few"  # the page explains it below the table


@dataclass(frozen=True)
class Cell:
    """One cell: its text, a smaller second line, a tag beside it, and whether it is an alarm."""

    text: str
    note: str = ""
    tag: str = ""
    alarm: bool = False

    @property
    def muted(self) -> bool:
        """Whether the text says that there is no number."""
        return self.text in (NOT_MEASURED, TOO_FEW, "")


@dataclass(frozen=True)
class Column:
    """A head with its unit; "number" cells are right-aligned, "prose" cells may wrap."""

    head: str
    unit: str = ""
    kind: Literal["number", "name", "prose"] = "number"


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; `roles` marks the baseline's and the headline's row."""

    caption: str
    columns: list[Column]
    rows: list[list[Cell]]
    roles: list[str]


def table_of(caption: str, columns: Sequence[tuple[Column, list[Cell]]], roles: Sequence[str] = ()) -> Table:
    """A table by columns."""
    cells = [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
    return Table(caption, [column for column, _ in columns], cells, list(roles) or ["other"] * len(cells))


def _names(rows: Sequence[Row]) -> list[Cell]:
    return [Cell(one_line(row.name), tag="" if row.role == "other" else row.role) for row in rows]


def variants_table(report: Report) -> Table:
    """Every variant with all that was measured; times are shown and never divided. An emulated device has none, but
    agreement with this machine.
    """
    rows = report.rows
    off = (Column("off from here", "max|Δ| / max|y|"), [_agreement_cell(row.agreement) for row in rows])
    columns = [
        (Column("variant", kind="name"), _names(rows)),
        *(
            []
            if report.is_emulated
            else [(Column("speed-up", "×, 95 % interval"), [ratio_cell(report, row) for row in rows])]
        ),
        (Column("accuracy", "95 % interval"), [_score_cell(row) for row in rows]),
        *([off] if report.is_emulated else _measured(rows)),
        _scaled("size", "B", [row.variant.size_bytes for row in rows]),
        _scaled("MACs", "", [row.variant.macs for row in rows]),
        _scaled("parameters", "", [row.variant.parameters for row in rows]),
    ]
    return table_of("Every variant, measured", columns, [row.role for row in rows])


def _measured(rows: Sequence[Row]) -> list[tuple[Column, list[Cell]]]:
    """Times, and memory."""
    return [
        *(
            (Column(f"p{round(q * 100)}", "ms"), time_cells([row.quantile_s(q) for row in rows], TOO_FEW))
            for q in (0.5, 0.9, 0.99)
        ),
        (Column("first run", "ms"), time_cells([row.first_run_s for row in rows])),
        (Column("session creation", "ms"), time_cells([row.session_creation_s for row in rows])),
        _scaled("peak memory", "B", [row.peak_rss_bytes for row in rows]),
    ]


def _agreement_cell(agreement: Agreement | None) -> Cell:
    if agreement is None:
        return Cell(NOT_MEASURED)
    return Cell(f"{agreement.relative:.1e}", f"allowed {agreement.allowed:.0e}", alarm=not agreement.passed)


def ratio_cell(report: Report, row: Row) -> Cell:
    """A variant's speed-up with its interval; an alarm where it is surely slower."""
    if row is report.baseline:
        return Cell("1", "by definition")
    if row.comparison is None:
        return Cell(NOT_MEASURED)
    return Cell(ratio_text(row.comparison)[:-1], ratio_interval(row.comparison), alarm=row.comparison.high < 1)


def _score_cell(row: Row) -> Cell:
    return Cell(score_text(row.score), score_interval(row.score) if row.score else "")


def time_cells(values_s: list[float | None], missing: str = NOT_MEASURED) -> list[Cell]:
    """Seconds as milliseconds, one number of digits."""
    return [Cell(t) for t in aligned([None if v is None else v * 1e3 for v in values_s], missing)]


def _scaled(head: str, unit: str, values: Sequence[float | None]) -> tuple[Column, list[Cell]]:
    divisor, prefix = si(values)
    if divisor == 1:
        return Column(head, unit), [Cell(NOT_MEASURED if v is None else f"{v:.0f}") for v in values]
    texts = aligned([None if value is None else value / divisor for value in values])
    return Column(head, f"{prefix}{unit}"), [Cell(text) for text in texts]


def realised_table(report: Report) -> Table:
    """How much of the saving in MACs is a saving in time."""
    rows = [row for row in report.rows if row.comparison]
    reductions = [report.mac_reduction(row) for row in rows]
    shares = [realised_share(report, row) for row in rows]
    columns = [
        (Column("variant", kind="name"), _names(rows)),
        (Column("MAC reduction", "×"), [Cell(text) for text in aligned(reductions)]),
        (Column("measured speed-up", "×"), [ratio_cell(report, row) for row in rows]),
        (
            Column("realised", "% of the saving"),
            [Cell("no MAC saved" if s is None else f"{s * 100:.0f}") for s in shares],
        ),
    ]
    return table_of("MAC reduction against measured speed-up", columns, [row.role for row in rows])


def layers_table(row: Row) -> Table | None:
    """What the plan decides for each layer, with the reason."""
    if row.side.plan is None or not row.side.plan.layers:
        return None
    layers = row.side.plan.layers
    decided = list(layers.values())
    columns = [
        (Column("layer", kind="name"), [Cell(one_line(name)) for name in layers]),
        (Column("form", kind="name"), [Cell(layer.form) for layer in decided]),
        (Column("rank", "of full"), [_rank_cell(layer) for layer in decided]),
        (Column("energy", "%"), [_known(layer.energy, lambda e: f"{e * 100:.1f}") for layer in decided]),
        (Column("MACs", "dense"), [Cell(quantity(layer.macs_dense)) for layer in decided]),
        (Column("MACs", "now"), [Cell(quantity(layer.macs)) for layer in decided]),
        (Column("predicted", "× faster"), [_known(layer.predicted, "{:.2f}".format) for layer in decided]),
        (Column("measured", "× faster"), [_known(layer.measured, "{:.2f}".format) for layer in decided]),
        (Column("reason", kind="prose"), [Cell(one_line(layer.reason)) for layer in decided]),
    ]
    shown = [c for c in columns if c[0].kind != "number" or any(not cell.muted for cell in c[1])]
    return table_of(f"Layers of {one_line(row.name)}", shown)


def _rank_cell(layer: LayerDecision) -> Cell:
    ranks = " × ".join(map(str, layer.ranks))
    return Cell(f"{ranks} / {layer.full_rank}" if ranks and layer.full_rank else ranks)


def _known(value: float | None, text: Callable[[float], str]) -> Cell:
    return Cell("" if value is None else text(value))


def groups_table(row: Row) -> Table | None:
    """What the plan decides for each group of channels, with the reason."""
    if row.side.plan is None or not row.side.plan.groups:
        return None
    groups = row.side.plan.groups
    decided = list(groups.values())
    columns = [
        (Column("group", kind="name"), [Cell(one_line(name)) for name in groups]),
        (Column("kept", "of all"), [Cell(f"{len(g.kept)} / {g.channels}") for g in decided]),
        (Column("members", kind="prose"), [Cell(one_line(", ".join(g.members))) for g in decided]),
        (Column("reason", kind="prose"), [Cell(one_line(g.reason)) for g in decided]),
    ]
    return table_of(f"Channel groups of {one_line(row.name)}", columns)


def parity_table(report: Report) -> Table | None:
    """Every comparison of outputs that an export made."""
    checks = [(row, c) for row in report.rows if row.side.parity for c in row.side.parity.checks]
    if not checks:
        return None
    columns = [
        (Column("variant", kind="name"), [Cell(one_line(row.name)) for row, _ in checks]),
        (Column("compared", kind="prose"), [Cell(one_line(c.what)) for _, c in checks]),
        (Column("batch"), [Cell(str(c.batch)) for _, c in checks]),
        (Column("relative", "max|Δ| / max|y|"), [Cell(f"{c.relative:.2e}") for _, c in checks]),
        (Column("absolute", "max|Δ|"), [Cell(f"{c.absolute:.2e}") for _, c in checks]),
        (Column("bound"), [Cell("lossy" if c.bound is None else f"{c.bound:.2e}") for _, c in checks]),
        (Column("outcome", kind="name"), [_outcome(c) for _, c in checks]),
    ]
    return table_of("Parity", columns)


def _outcome(check: ParityCheck) -> Cell:
    if not check.passed:
        return Cell("FAILED", alarm=True)
    return Cell("reported" if check.bound is None else "passed")


def training_table(report: Report) -> Table | None:
    """What each training reached, one row a variant."""
    rows = [(row, row.side.train) for row in report.rows if row.side.train]
    if not rows:
        return None
    columns = [
        (Column("variant", kind="name"), [Cell(one_line(row.name)) for row, _ in rows]),
        (Column("steps"), [Cell(str(t.steps)) for _, t in rows]),
        (Column("seed"), [Cell(str(t.seed)) for _, t in rows]),
        (Column("training", "s"), [Cell(f"{t.train_s:.0f}") for _, t in rows]),
        (Column("proximal steps", "% of it"), [_proximal(t.proximal_s, t.train_s) for _, t in rows]),
        (Column("validation accuracy", "%"), [Cell(f"{t.validation_accuracy * 100:.1f}") for _, t in rows]),
        (Column("recipe", kind="prose"), [Cell(one_line(t.recipe.about)) for _, t in rows]),
    ]
    return table_of("Training", columns, [row.role for row, _ in rows])


def _proximal(proximal_s: float, train_s: float) -> Cell:
    return Cell(f"{proximal_s / train_s * 100:.1f}" if train_s > 0 else NOT_MEASURED)


def files_table(report: Report) -> Table:
    """Which file each variant is, so that it can be told apart from another of the same name."""
    columns = [
        (Column("variant", kind="name"), _names(report.rows)),
        (Column("file", kind="name"), [Cell(one_line(row.variant.file)) for row in report.rows]),
        (Column("sha256", kind="name"), [Cell(row.variant.sha256) for row in report.rows]),
    ]
    return table_of("The files measured", columns, [row.role for row in report.rows])


def csv_text(report: Report) -> str:
    """One row a variant, SI units in the heads, an empty field for what was not measured."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_CSV)
    writer.writerows([read(row) for read in _CSV.values()] for row in report.rows)
    return buffer.getvalue()


_CSV: dict[str, Callable[[Row], object]] = {
    "variant": lambda row: row.name,
    "sha256": lambda row: row.variant.sha256,
    "role": lambda row: row.role,
    "ratio": lambda row: row.comparison and row.comparison.ratio,
    "ratio_low": lambda row: row.comparison and row.comparison.low,
    "ratio_high": lambda row: row.comparison and row.comparison.high,
    "pairs": lambda row: row.comparison and row.comparison.pairs,
    "p50_s": lambda row: row.quantile_s(0.5),
    "p90_s": lambda row: row.quantile_s(0.9),
    "p99_s": lambda row: row.quantile_s(0.99),
    "samples": lambda row: row.samples_s.size,
    "first_run_s": lambda row: row.first_run_s,
    "session_creation_s": lambda row: row.session_creation_s,
    "peak_rss_bytes": lambda row: row.peak_rss_bytes,
    "size_bytes": lambda row: row.variant.size_bytes,
    "macs": lambda row: row.variant.macs,
    "parameters": lambda row: row.variant.parameters,
    "metric": lambda row: row.score and row.score.metric,
    "metric_value": lambda row: row.score and row.score.value,
    "metric_low": lambda row: row.score and row.score.low,
    "metric_high": lambda row: row.score and row.score.high,
}
