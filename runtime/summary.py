"""What a gate decided, as a few lines of Markdown for a CI's page ($GITHUB_STEP_SUMMARY) or a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from ..records import Bench, Caution, Changes
from .report.markdown import escape
from .report.units import milliseconds, ratio_interval, ratio_text
from .stats import quantile, samples_of


def heading(verdict: str | None) -> str:
    """The first line of a summary."""
    return f"### rankfold: {escape(verdict)}" if verdict else "### rankfold"


def bench_summary(bench: Bench, verdict: str | None) -> str:
    """The verdict, each variant against the baseline, and the cautions; of an emulated device, against itself here."""
    if bench.agreements:
        off = [[one.variant, f"{one.relative:.1e}", f"{one.allowed:.0e}"] for one in bench.agreements]
        where = f"{bench.context.device}, emulated: it yields no times"
        return _page(verdict, ["model", "off from here", "allowed"], off, [where], bench.cautions)
    found = {comparison.variant: comparison for comparison in bench.comparisons}
    rows = []
    for variant in bench.variants:
        comparison = found.get(variant.name)
        ratio = "baseline" if comparison is None else f"{ratio_text(comparison)} {ratio_interval(comparison)}"
        rows.append([variant.name, ratio, milliseconds(quantile(samples_of(bench.pairs, variant.name), 0.5))])
    context = bench.context
    where = f"{context.facts.cpu_model or context.device}, {context.threads} thread(s), {context.provider}"
    return _page(verdict, ["model", "speed-up (95 %)", "p50"], rows, [where], bench.cautions)


def changes_summary(changes: Changes, verdict: str | None) -> str:
    """The verdict, and each model's time now as a multiple of its old one."""
    rows = [
        [
            change.variant,
            f"{change.time:.3f} ({change.low:.3f} to {change.high:.3f})",
            f"{change.then:.3f}×",
            f"{change.now:.3f}×",
            "the same file" if change.same_file else "",
        ]
        for change in changes.changes
    ]
    heads = ["model", "time now / then (95 %)", f"speed-up over {changes.baseline} then", "now", ""]
    only = {"then": changes.only_then, "now": changes.only_now}
    notes = [f"only {when}: {', '.join(names)}" for when, names in only.items() if names]
    return _page(verdict, heads, rows, notes, [])


def _page(
    verdict: str | None, heads: list[str], rows: list[list[str]], notes: list[str], cautions: Sequence[Caution]
) -> str:
    table = [heads, ["---"] * len(heads), *rows]
    parts = [
        heading(verdict),
        "\n".join(f"| {' | '.join(cell if row is table[1] else escape(cell) for cell in row)} |" for row in table),
        *map(escape, notes),
        "\n".join(f"- **{escape(c.what)}** Remedy: {escape(c.remedy)}" for c in cautions),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
