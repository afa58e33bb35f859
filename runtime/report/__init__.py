"""The report: one record is assembled from a folder, and small writers turn it into pages and rows.

In: bench.json (required) and, where present, evaluation.json, sweep.json, plans, parities, training records,
recipe.toml.
Out: report.html, report.md, report.csv and dashboard.json, the same bytes for the same input.

assemble.py   reads a folder and joins its records by variant          folder → Report
commands.py   the command lines that would measure it again           Bench → command lines
answer.py     the verdict and the sentences that open the page         Report → Answer
units.py      numbers as text: milliseconds, sizes, intervals          float → str
tables.py     every table of the page as plain text cells, and CSV     Report → Table, CSV
svg.py        scales, ticks and SVG elements with escaped content      values → Markup
plots.py      latency, gain, accuracy: the figures                     Report → Figure
curves.py     the training curves                                      Report → Figure
sweep.py      a sweep's own: size, sensitivity, ranks                  Report → Figure
rules.py      harm against time by the rules one may choose by         Report → Figure
context.py    the board, the session and the weather as rows           Bench → rows
across.py     the records of several devices, side by side             bench.json files → Across
html.py       page.html or across.html filled in, with page.css        Report, Across → HTML
markdown.py   the same page for a terminal or a pull request           Report, Across → Markdown
dashboard.py  rows for github-action-benchmark                         Report → JSON
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError
from ...files import write_text

if TYPE_CHECKING:
    from .across import Across
    from .assemble import Report

__all__ = ["write_across", "write_report"]


def write_report(source: Path, output: Path | None = None, headline: str | None = None) -> Path:
    """Write report.html, and beside it report.md, report.csv and dashboard.json; return the HTML's path.

    `source` is a run folder, a comparison folder or a bench.json; `output` a folder or a path that ends in
    .html (default: report.html beside bench.json); `headline` names the variant that the answer is about.
    Raises InputError for records that are missing, broken or measured under an emulator.
    """
    from .assemble import assemble
    from .dashboard import dashboard_text
    from .markdown import markdown_text
    from .tables import csv_text

    source = bench_path(Path(source))
    page = _page_path(source, output)
    report = assemble(source, headline)
    texts = {
        page: _html(report),
        page.with_suffix(".md"): markdown_text(report),
        page.with_suffix(".csv"): csv_text(report),
        page.with_name("dashboard.json"): dashboard_text(report),
    }
    for path, text in texts.items():
        write_text(path, text)
    return page


def write_across(sources: Sequence[Path], output: Path | None = None) -> Path:
    """Write the report.html, and report.md beside it, of several devices' records; return the HTML's path.

    Raises InputError for records that do not fit together; else as `write_report`.
    """
    from .across import across
    from .markdown import across_markdown

    sources = [bench_path(source) for source in sources]
    page, found = _page_path(sources[0], output), across(sources)
    texts = {page: _html(found), page.with_suffix(".md"): across_markdown(found)}
    for path, text in texts.items():
        write_text(path, text)
    return page


def bench_path(source: Path) -> Path:
    """The bench.json that `source`, a folder or the file itself, stands for."""
    return source / "bench.json" if source.is_dir() else source


def _page_path(bench: Path, output: Path | None) -> Path:
    if output is None:
        return bench.parent / "report.html"
    output = Path(output)
    if output.is_dir():
        return output / "report.html"
    if output.suffix != ".html":
        raise InputError(f"{output}: expected a folder or a name that ends in .html; give another output")
    return output


def _html(found: Report | Across) -> str:
    try:
        from .html import html_text
    except ModuleNotFoundError as error:
        if error.name not in ("jinja2", "markupsafe"):
            raise
        raise InputError("the report needs jinja2; install it with: pip install 'rankfold[report]'") from error
    return html_text(found)
