"""The page: page.html, or across.html of several devices, filled in by jinja2, everything inline, nothing fetched."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from .across import Across
from .answer import answer
from .assemble import Report
from .context import context_rows
from .curves import training_figures
from .ledger import waterfall
from .load_tables import load_tables
from .plots import figures
from .rules import frontier_figure
from .sweep import failures, sweep_figures, sweep_ranks
from .tables import (
    files_table,
    groups_table,
    layers_table,
    parity_table,
    realised_table,
    training_table,
    variants_table,
)
from .units import one_line

_HERE = Path(__file__).parent


def html_text(found: Report | Across) -> str:
    """The whole page as HTML; the same text for the same report."""
    return _filled("across.html", title=found.title, found=found) if isinstance(found, Across) else _page(found)


def _page(report: Report) -> str:
    top = answer(report)
    return _filled(
        "page.html",
        title=top.title,
        answer=top,
        emulated=report.is_emulated,
        where=where(report),
        files=files_table(report),
        variants=variants_table(report),
        figures=[*figures(report), *filter(None, [frontier_figure(report), waterfall(report)])],
        realised=realised_table(report),
        sweep=sweep_figures(report),
        sweep_ranks=sweep_ranks(report),
        failures=failures(report),
        loads=load_tables(report),
        plans=_plans(report),
        parity=parity_table(report),
        training=training_table(report),
        training_figures=training_figures(report),
        cautions=[{"what": one_line(c.what), "remedy": one_line(c.remedy)} for c in report.cautions],
        context=context_rows(report.bench),
        commands=report.commands,
        recipe=report.recipe,
    )


def _filled(template: str, **values: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = Markup((_HERE / "page.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(css=css, **values)


def where(report: Report) -> list[str]:
    """The line above the title: the device, its processor, the runtime, the start."""
    context = report.bench.context
    threads = f"{context.threads} thread{'' if context.threads == 1 else 's'}"
    runtime = f"onnxruntime {context.facts.onnxruntime_version}"
    emulated = "emulated" if report.is_emulated else None
    words = [context.device, context.facts.cpu_model, emulated, threads, runtime, context.started_at]
    return [one_line(word) for word in words if word]


def _plans(report: Report) -> list[dict[str, object]]:
    """The headline's plan first and open, those of the others folded."""
    ordered = sorted((row for row in report.rows if row.side.plan), key=lambda row: row.role != "headline")
    return [
        {
            "name": one_line(row.name),
            "open": row.role == "headline",
            "tile": row.side.plan.tile if row.side.plan else None,
            "tables": [table for table in (layers_table(row), groups_table(row)) if table],
        }
        for row in ordered
    ]
