"""The answer: the verdict in words, with its reason, and the sentences that open the page."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...records import Comparison
from .assemble import Report, Row
from .units import (
    DASH,
    NOT_MEASURED,
    is_share,
    one_line,
    quantity,
    ratio_interval,
    ratio_text,
    score_change,
    score_interval,
    score_text,
)

NO_GAIN = "no gain on this device"


@dataclass(frozen=True)
class Verdict:
    """A word or two and the reason; `tone` is gain, loss or none."""

    word: str
    reason: str
    tone: str


@dataclass(frozen=True)
class Fact:
    """One before-and-after beside the headline number; an empty `before` leaves `after` alone."""

    label: str
    before: str
    before_note: str
    after: str
    after_note: str
    change: str


@dataclass(frozen=True)
class Answer:
    """What stands at the top of the page."""

    title: str
    verdict: Verdict
    number: str
    unit: str
    interval: str
    facts: list[Fact]
    sentences: list[str]


def verdict(comparison: Comparison | None) -> Verdict:
    """A gain only if the whole interval lies above 1 (design: nothing else counts as one)."""
    if comparison is None:
        return Verdict("not compared", "no launch pairs of this model and the baseline", "none")
    interval = ratio_interval(comparison)
    if comparison.low > 1:
        return Verdict("faster", f"the whole interval {interval} lies above 1", "gain")
    if comparison.high < 1:
        return Verdict(NO_GAIN, f"slower: the whole interval {interval} lies below 1", "loss")
    return Verdict(NO_GAIN, f"the interval {interval} contains 1", "loss")


def _agreement(report: Report) -> tuple[str, str, Verdict]:
    """The number, its unit and the verdict where nothing was timed: an emulator can speak of outputs alone."""
    found = [row.agreement for row in report.rows if row.agreement]
    if not found:
        return "", "", Verdict("emulated", "no latency was measured, no outputs were compared", "none")
    wrong = [one_line(one.variant) for one in found if not one.passed]
    outputs = f"outputs of {', '.join(wrong)} differ from those here" if wrong else "all outputs agree with those here"
    worst = max(one.relative for one in found)
    tone = "loss" if wrong else "none"
    return f"{worst:.1e}", "off from here, at most", Verdict("emulated", f"no latency was measured; {outputs}", tone)


def answer(report: Report) -> Answer:
    """The top of the page for the headline variant, or for a model that stands alone."""
    first, chosen = report.baseline, report.headline
    comparison = chosen.comparison
    device = one_line(report.bench.context.device)
    if chosen is first:
        latency_s = first.quantile_s(0.5)
        number, unit = ("", "") if latency_s is None else (f"{latency_s * 1e3:.3g}", "ms, p50")
        title = f"{one_line(first.name)} on {device}"
    else:
        number, unit = (ratio_text(comparison), f"the speed of {one_line(first.name)}") if comparison else ("", "")
        title = f"{one_line(chosen.name)} against {one_line(first.name)} on {device}"
    judged = verdict(comparison) if chosen is not first else Verdict("not compared", "measured alone", "none")
    if report.is_emulated:
        number, unit, judged = _agreement(report)
    return Answer(
        title=title,
        verdict=judged,
        number=number or NOT_MEASURED,
        unit=unit,
        interval=_interval_sentence(comparison),
        facts=_facts(report),
        sentences=_sentences(report),
    )


def _interval_sentence(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    return f"95 % interval {ratio_interval(comparison)}, {comparison.pairs} launch pairs"


def _facts(report: Report) -> list[Fact]:
    first, chosen = report.baseline, report.headline
    before, after = first.variant, chosen.variant
    facts = [
        _accuracy_fact(report),
        _fact("Size", before.size_bytes, after.size_bytes, "B", "smaller", "larger"),
        _fact("MACs", before.macs, after.macs, "", "fewer", "more"),
        _fact("Parameters", before.parameters, after.parameters, "", "fewer", "more"),
    ]
    return [replace(fact, before="", before_note="") if _says_it_once(fact, report) else fact for fact in facts]


def _says_it_once(fact: Fact, report: Report) -> bool:
    return report.headline is report.baseline or fact.before == fact.after == NOT_MEASURED


def _accuracy_fact(report: Report) -> Fact:
    before, after = report.baseline.score, report.headline.score
    label = report.split[2].replace("_", " ").capitalize() if report.split else "Accuracy"
    change = score_change(before, after) if before and after and before is not after else ""
    notes = [score_interval(score) if score else "" for score in (before, after)]
    return Fact(one_line(label), score_text(before), notes[0], score_text(after), notes[1], change)


def _fact(label: str, before: float | None, after: float | None, unit: str, less: str, more: str) -> Fact:
    change = ""
    if before and after and before != after:
        change = f"{before / after:.3g}× {less}" if after < before else f"{after / before:.3g}× {more}"
    return Fact(label, quantity(before, unit), "", quantity(after, unit), "", change)


def _sentences(report: Report) -> list[str]:
    return [s for s in (_split_sentence(report), _realised_sentence(report), _rival_sentence(report)) if s]


def _split_sentence(report: Report) -> str:
    if report.split is None:
        return "No accuracy was measured for these models; speed alone says nothing about what was lost."
    data, split, metric = report.split
    counts = sorted({row.score.n for row in report.rows if row.score})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}{DASH}{counts[-1]}"
    return one_line(
        f"{metric.replace('_', ' ').capitalize()} on {data}, {split} split, n = {n}; 95 % Wilson intervals."
    )


def realised_share(report: Report, row: Row) -> float | None:
    """Share of time saved / share of MACs saved: (1 − 1/ratio) / (1 − 1/reduction); None if no MAC was saved."""
    reduction = report.mac_reduction(row)
    if row.comparison is None or reduction is None or reduction <= 1:
        return None
    return (1 - 1 / row.comparison.ratio) / (1 - 1 / reduction)


def _realised_sentence(report: Report) -> str:
    row = report.headline
    share, reduction = realised_share(report, row), report.mac_reduction(row)
    if share is None or reduction is None or row.comparison is None:
        return ""
    macs, time = (1 - 1 / reduction) * 100, (1 - 1 / row.comparison.ratio) * 100
    if time <= 0:
        return f"{macs:.0f} % of the MACs are gone, and none of the time."
    return f"{macs:.0f} % of the MACs are gone and {time:.0f} % of the time: {share * 100:.0f} % realised."


def rivals(report: Report) -> list[Row]:
    """Variants at least as fast and at least as accurate as the headline, by their point estimates."""
    chosen, speed = report.headline, report.speed(report.headline)
    if speed is None or chosen.score is None:
        return []
    return [
        row
        for row in _judged(report)
        if row is not chosen and row.score and row.score.value >= chosen.score.value
        if (report.speed(row) or 0.0) >= speed
    ]


def _judged(report: Report) -> list[Row]:
    return [row for row in report.rows if row.score and is_share(row.score) and report.speed(row) is not None]


def _rival_sentence(report: Report) -> str:
    judged = _judged(report)
    if report.headline not in judged or len(judged) < 2:
        return ""
    better = rivals(report)
    if better:
        names = ", ".join(one_line(row.name) for row in better)
        return f"At least as fast and at least as accurate, by point estimates: {names}."
    others = "The other model is not" if len(judged) == 2 else f"None of the {len(judged) - 1} other models is"
    return f"{others} both at least as fast and at least as accurate, by point estimates."
