"""The page as Markdown (GitHub's flavour), for a pull request or a terminal; the figures are in the HTML."""

from __future__ import annotations

import re

from .across import Across
from .answer import Fact, answer
from .assemble import Report
from .context import context_rows
from .load_tables import load_tables
from .tables import (
    Cell,
    Table,
    groups_table,
    layers_table,
    parity_table,
    realised_table,
    training_table,
    variants_table,
)
from .units import one_line

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~!])")


def escape(text: str) -> str:
    """`text` as literal Markdown on one line: no markup, no HTML, no mention, no new cell or row."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", text).replace("@", "&#64;")


def markdown_text(report: Report) -> str:
    """The whole page as Markdown, in the order of the HTML."""
    top = answer(report)
    planned = sorted((row for row in report.rows if row.side.plan), key=lambda row: row.role != "headline")
    plans = [table for row in planned for table in (layers_table(row), groups_table(row))]
    loads = load_tables(report)
    sections = [
        f"# {escape(top.title)}",
        f"**{escape(top.number)}** {escape(top.unit)} · **{escape(top.verdict.word)}**: "
        f"{escape(top.verdict.reason)}. {escape(top.interval)}".strip(),
        "\n".join(map(_fact, top.facts)),
        *map(escape, top.sentences),
        _section("Variants", variants_table(report)),
        _section("MAC reduction against measured speed-up", realised_table(report)),
        "## Under load, and where the time goes" if loads else "",
        *(_section(table.caption, table, "###") for table in loads),
        "## Plan" if any(plans) else "",
        *(_section(table.caption, table, "###") for table in plans if table),
        _section("Parity", parity_table(report)),
        _section("Training", training_table(report)),
        "## Cautions\n\n" + _cautions(report),
        "## Context\n\n" + _rows([["what", "value"], ["---", "---"], *_escaped(context_rows(report.bench))]),
        "## Commands\n\nIn the folder of the bench record:\n\n" + _fenced("\n".join(report.commands)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def across_markdown(found: Across) -> str:
    """The page of several devices as Markdown."""
    cautions = [f"- **{escape(device)}: {escape(c.what)}** Remedy: {escape(c.remedy)}" for device, c in found.cautions]
    sections = [
        f"# {escape(found.title)}",
        *map(escape, found.sentences),
        _section("Who gains where", found.speeds),
        _section("Times", found.times),
        "## Cautions\n\n" + ("\n".join(cautions) or "None: nothing in the measurements looked wrong."),
        _section("Devices", found.devices),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _fact(fact: Fact) -> str:
    notes = [f" ({escape(note)})" if note else "" for note in (fact.before_note, fact.after_note)]
    change = f", {escape(fact.change)}" if fact.change else ""
    before = f"{escape(fact.before)}{notes[0]} → " if fact.before else ""
    return f"- {escape(fact.label)}: {before}{escape(fact.after)}{notes[1]}{change}"


def _section(title: str, table: Table | None, level: str = "##") -> str:
    return "" if table is None or not table.rows else f"{level} {escape(title)}\n\n{_table(table)}"


def _table(table: Table) -> str:
    heads = [escape(f"{c.head} ({c.unit})" if c.unit else c.head) for c in table.columns]
    rules = ["---:" if column.kind == "number" else "---" for column in table.columns]
    return _rows([heads, rules, *([_cell(cell) for cell in row] for row in table.rows)])


def _cell(cell: Cell) -> str:
    words = [
        escape(cell.text),
        f"({escape(cell.note)})" if cell.note else "",
        f"*{cell.tag}*" if cell.tag else "",
    ]
    text = " ".join(word for word in words if word)
    return f"**{text}**" if cell.alarm else text


def _rows(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _escaped(rows: list[tuple[str, str]]) -> list[list[str]]:
    return [[escape(cell) for cell in row] for row in rows]


def _cautions(report: Report) -> str:
    lines = [f"- **{escape(c.what)}** Remedy: {escape(c.remedy)}" for c in report.cautions]
    return "\n".join(lines) or "None: nothing in the measurement looked wrong."


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks within."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{text}\n{fence}"
