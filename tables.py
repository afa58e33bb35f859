"""What the terminal shows at the end of a command: a table, or a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .records import (
    Bench,
    Changes,
    Cost,
    Damage,
    EpochRow,
    Explanation,
    Frontier,
    FrontierPoint,
    LayerTime,
    Plan,
    Seconds,
    Sweep,
)
from .terminal import plain

_PLACES = 4  # of a cause, in the table
OPERATOR_ROWS = 20  # of the table by layer; the rest is in bench.json


def epoch_line(row: EpochRow) -> str:
    """One epoch in a line."""
    text = f"epoch {row.epoch}: loss {row.train_loss:.3f}, validation {row.validation_accuracy:.2%}"
    if row.layers:
        ranks = " ".join(f"{layer.rank}" for layer in row.layers)
        live = " ".join(f"{layer.live_groups}" for layer in row.layers if layer.live_groups is not None)
        text += f", ranks {ranks}, live {live}"
    return text


def print_plan(plan: Plan) -> None:
    """Every decision with its reason."""
    table = Table("layer", "form", "ranks", "MACs", "reason", box=None, pad_edge=False)
    for name, layer in plan.layers.items():
        ranks = "×".join(map(str, layer.ranks))
        macs = "" if layer.macs is None else f"{_millions(layer.macs_dense)} → {_millions(layer.macs)}"
        table.add_row(plain(name), layer.form, ranks, macs, plain(layer.reason))
    for name, group in plan.groups.items():
        width = f"{len(group.kept)} of {group.channels}"
        table.add_row(plain(name), "channels", width, "", plain(group.reason))
    Console(markup=False, emoji=False).print(table)


def print_layer_times(rows: Sequence[LayerTime]) -> None:
    """Layers that are alike, and each way to write them, fastest first."""
    table = Table("layers", "share of layers' time", "form", "ranks", "time / dense", box=None, pad_edge=False)
    before: list[str] = []
    for row in rows:
        first = row.layers != before
        names = f"{row.layers[0]}" + (f" and {len(row.layers) - 1} more" if len(row.layers) > 1 else "")
        share = f"{row.share:.1%}"
        ranks = "×".join(map(str, row.ranks))
        table.add_row(plain(names) if first else "", share if first else "", row.form, ranks, f"{row.ratio:.2f}")
        before = row.layers
    Console(markup=False, emoji=False).print(table)


def damage_text(damage: Damage | None) -> str:
    """What became of the outputs, to end a sentence with."""
    if damage is None:
        return ""
    text = f"; output error {damage.error:.2%}"
    if damage.agreement is not None:
        text += f", same top class {damage.agreement:.2%}"
    if damage.top1_before is not None and damage.top1_after is not None:
        text += f", top-1 {damage.top1_before:.2%} → {damage.top1_after:.2%}"
    return f"{text} on {damage.n} calibration inputs"


def print_quantized(plan: Plan) -> None:
    """How a file was quantised: the ranges, the layers that stayed float, and the times where they were measured."""
    how = plan.quantized
    assert how is not None, "the plan of an int8 file"
    tried = ", ".join(f"{one.method}{', equalised' * one.equalized} {one.error:.2%}" for one in how.tried)
    judged = "as many others" if how.held_apart else "the same ones: too few to hold some apart"
    pairs = f", {len(how.equalized)} pairs of layers equalised" if how.equalized else ""
    print(
        f"ranges by {how.method}{pairs}, weights of {how.weight_bits} bits; output error by {tried} "
        f"(ranges from {how.n_ranges} inputs, judged on {judged})"
    )
    if how.floats:
        print(
            plain(
                f"{len(how.floats)} of {len(plan.layers)} layers stay float, the plan says why: {', '.join(how.floats)}"
            )
        )
    if how.timing is not None:
        mixed = "" if how.timing.mixed is None else f", with the faster layers in float {how.timing.mixed:.3f}"
        print(f"all layers in int8 take {how.timing.int8:.3f} of the float file's time on {how.timing.device}{mixed}")


def print_int8(source: Path, quantized: Path) -> None:
    """What became of a float file as int8, by the records beside it."""
    from .export.fold import record_names
    from .options import megabytes
    from .records import Parity, Plan

    parity, plan = (quantized.with_name(name) for name in record_names(quantized.name))
    print_quantized(Plan.read(plan))
    damage = damage_text(Parity.read(parity).damage)
    print(f"{quantized}: {megabytes(source)} → {megabytes(quantized)}{damage}")


def print_frontier(points: Sequence[FrontierPoint]) -> None:
    """Cost against the damage that is predicted, from dense downwards."""
    table = Table("kept", "MACs or weights", "factorised layers", "predicted damage", box=None, pad_edge=False)
    for point in points:
        table.add_row(f"{point.share:.0%}", _millions(point.cost), str(point.layers), f"{point.damage:.4g}")
    Console(markup=False, emoji=False).print(table)


def print_curves(found: Frontier) -> None:
    """Each rule's networks: time, and what they do to the outputs."""
    lost = f"lost {found.metric} / points" if found.n else None
    table = Table(
        "rule", "time", "speed", "layers", "output error", *([lost] if lost else []), box=None, pad_edge=False
    )
    for curve in found.curves:
        for point in curve.points:
            drop = "" if point.drop is None else f"{100 * point.drop:.2f}"
            cells = [
                curve.rule,
                f"{point.time:.3f}",
                f"{1 / point.time:.2f}×",
                str(point.layers),
                f"{point.damage:.3g}",
            ]
            table.add_row(*cells, *([drop] if lost else []))
    Console(markup=False, emoji=False).print(table)
    if found.n:
        print(f"judged on {found.n} inputs that the networks were not fitted to")


def print_bench(bench: Bench) -> None:
    """Each variant against the baseline; of an emulated device, against itself here."""
    if bench.agreements:
        _print_agreements(bench)
        return
    baseline = bench.variants[0].name
    found = {comparison.variant: comparison for comparison in bench.comparisons}
    table = Table("variant", "size", "MACs", f"speed-up over {baseline} (95 %)", box=None, pad_edge=False)
    for variant in bench.variants:
        ratio = found.get(variant.name)
        text = "1 (baseline)" if ratio is None else f"{ratio.ratio:.3f}×  ({ratio.low:.3f} to {ratio.high:.3f})"
        table.add_row(plain(variant.name), f"{variant.size_bytes / 1e6:.2f} MB", _millions(variant.macs), text)
    console = Console(markup=False, emoji=False)
    console.print(table)
    _print_load(console, bench)
    for caution in bench.cautions:
        console.print(Text(plain(f"caution: {caution.what}; {caution.remedy}")))


def _print_agreements(bench: Bench) -> None:
    off = {one.variant: one for one in bench.agreements}
    table = Table("variant", "size", "MACs", "off from here, of the largest output", box=None, pad_edge=False)
    for variant in bench.variants:
        one = off[variant.name]
        text = f"{one.relative:.1e}  (allowed {one.allowed:.0e})"
        table.add_row(plain(variant.name), f"{variant.size_bytes / 1e6:.2f} MB", _millions(variant.macs), text)
    Console(markup=False, emoji=False).print(table)
    print(plain(f"{bench.context.device} is emulated: it yields no times"))


def print_cost(found: Cost) -> None:
    """Each model, and its layers where they were counted: a proxy for time, which is said."""
    first = found.models[0]
    heads = ("model", "MACs", "SIMD multiply-adds", "instructions", f"of {plain(first.name)}")
    table = Table(*heads, box=None, pad_edge=False)
    for model in found.models:
        share = f"{model.instructions / first.instructions:.3f}"
        counts = [_millions(model.macs), f"{model.multiply_adds:,}", f"{model.instructions:,}"]
        table.add_row(plain(model.name), *counts, share)
        for layer in model.layers:
            counts = [_millions(layer.macs), f"{layer.multiply_adds:,}", f"{layer.instructions:,}"]
            table.add_row(f"  {plain(layer.name)}", *counts, f"{layer.instructions / first.instructions:.3f}")
        if model.layers:
            rest = model.instructions - sum(layer.instructions for layer in model.layers)
            table.add_row("  all else", "", "", f"{rest:,}", f"{rest / first.instructions:.3f}")
    Console(markup=False, emoji=False).print(table)
    print(plain(f"counted on {found.device}, emulated: a proxy for time that knows no caches, no memory, no pipeline"))


def print_fleet(records: Sequence[Path], failures: Mapping[str, str]) -> None:
    """Who gains where, times by device, and a line for each device that failed."""
    from .runtime.report.across import across

    console = Console(markup=False, emoji=False)
    if records:
        found = across(records)
        for shown in filter(None, (found.speeds, found.times)):
            console.print(Text(f"{shown.caption}, {shown.columns[-1].unit}"))
            table = Table(*(column.head for column in shown.columns), box=None, pad_edge=False)
            for row in shown.rows:
                table.add_row(*(f"{cell.text}  ({cell.note})" if cell.note else cell.text for cell in row))
            console.print(table)
        for sentence in found.sentences:
            console.print(Text(sentence))
        for device, caution in found.cautions:
            console.print(Text(plain(f"{device}: caution: {caution.what}; {caution.remedy}")))
    for device, why in failures.items():
        console.print(Text(plain(f"{device} failed: {' '.join(why.split())}")), soft_wrap=True)


def print_sweep(found: Iterable[tuple[str, Path, Bench]]) -> None:
    """Each setting as soon as it is measured: where its record is, p50 of the baseline, the others against it."""
    from .runtime.stats import quantile, samples_of

    for name, path, bench in found:
        baseline = bench.variants[0].name
        middle = quantile(samples_of(bench.pairs, baseline), 0.5)
        parts = [f"{baseline} p50 {middle * 1e3:.3f} ms" if middle is not None else f"{baseline}: too few samples"]
        parts += [f"{c.variant} {c.ratio:.3f}× ({c.low:.3f} to {c.high:.3f})" for c in bench.comparisons]
        cautions = f"; {len(bench.cautions)} cautions" if bench.cautions else ""
        print(plain(f"{name}: {', '.join(parts)}{cautions}; {path}"), flush=True)


def _print_load(console: Console, bench: Bench) -> None:
    """What was asked for beside the pairs."""
    from .runtime import load, operators

    for paced in bench.paced:
        late, frames = load.missed(paced)
        text = f"{late} of {frames} frames missed their deadline ({paced.dropped} were dropped)"
        console.print(Text(f"{plain(paced.variant)} at {paced.rate_hz:g} Hz: {text}"))
    for sustained in bench.sustained:
        slower = load.slowdown(sustained)
        text = "too short to tell" if slower is None else f"a run takes {slower:.3f} of its first time at the end"
        console.print(Text(f"{plain(sustained.variant)} without a pause: {text}"))
    for profiled in bench.operators:
        shares = operators.by_layer(profiled)
        table = Table(f"{plain(profiled.variant)}: layer", "µs", "share", box=None, pad_edge=False)
        for share in shares[:OPERATOR_ROWS]:
            table.add_row(plain(share.name), f"{share.seconds * 1e6:.1f}", f"{share.share:.1%}")
        console.print(table)
        kinds = ", ".join(f"{share.name} {share.share:.0%}" for share in operators.by_operator(profiled)[:6])
        ran = ", ".join(f"{share.name} {share.share:.0%} of the time" for share in operators.by_provider(profiled))
        rest = f"{len(shares) - OPERATOR_ROWS} more rows; " if len(shares) > OPERATOR_ROWS else ""
        console.print(
            Text(
                f"{rest}by operator: {plain(kinds)}; reorders and transposes {operators.layout_share(profiled):.1%}; "
                f"{plain(ran)}; the nodes add up to {operators.accounted(profiled):.1%} of a profiled run"
            )
        )


def print_train_sweep(found: Sweep) -> None:
    """Each network: where it stands in the grid, and what it came to."""
    keys = list(found.grid)
    heads = (*keys, "validation", "MACs", "parameters", "speed-up (95 %)")
    table = Table(*map(plain, heads), box=None, pad_edge=False)
    for point in found.points:
        place = [plain(str(point.settings[key])) for key in keys]
        if point.validation_accuracy is None:
            table.add_row(*place, plain(point.failure or ""))
            continue
        measured = point.speedup is not None
        speed = f"{point.speedup:.3f}×  ({point.speedup_low:.3f} to {point.speedup_high:.3f})" if measured else ""
        sizes = (_millions(point.macs), f"{point.parameters:,}")
        table.add_row(*place, f"{point.validation_accuracy:.2%}", *sizes, speed)
    Console(markup=False, emoji=False).print(table)


def print_changes(changes: Changes) -> None:
    """Each model now against itself then."""
    base = plain(changes.baseline)
    table = Table("model", "time now / then (95 %)", f"speed-up over {base} then", "now", box=None, pad_edge=False)
    for change in changes.changes:
        time_now = f"{change.time:.3f}  ({change.low:.3f} to {change.high:.3f})"
        name = plain(change.variant) + (" (the same file)" if change.same_file else "")
        table.add_row(name, time_now, f"{change.then:.3f}×", f"{change.now:.3f}×")
    console = Console(markup=False, emoji=False)
    console.print(table)
    for when, names in (("then", changes.only_then), ("now", changes.only_now)):
        if names:
            console.print(Text(f"only {when}: {plain(', '.join(names))}"))


def print_explanation(found: Explanation) -> None:
    """The ledger from what was hoped to what was found, then what is worth changing."""
    console = Console(markup=False, emoji=False)
    if found.hoped is not None and found.gap is not None and found.residual is not None:
        table = Table("", "ms", "95 %", "where", box=None, pad_edge=False)
        table.add_row("its MACs promise", f"{1e3 * found.hoped.value:.3f}", "", "")
        for bar in found.bars:
            more = [f"{len(bar.places) - _PLACES} more"] if len(bar.places) > _PLACES else []
            where = "; ".join([*bar.places[:_PLACES], *more]) or bar.about
            table.add_row(plain(bar.cause), *_difference(bar.costs), plain(where))
        table.add_row("not explained", *_difference(found.residual), "")
        assert found.second.run_s is not None, "timed with the rest"
        table.add_row("it takes", f"{1e3 * found.second.run_s:.3f}", "", "")
        console.print(table)
    together = [] if found.together is None else [found.together]
    for number, improvement in enumerate([*found.improvements, *together], 1):
        error = "" if improvement.error is None else f", a layer changes by {improvement.error:.1%}"
        value, interval = _difference(improvement.worth)
        said = f"{number}. {improvement.name}: {value} ms less ({interval}){error}; {improvement.about}"
        console.print(Text(plain(said)), soft_wrap=True)
        console.print(Text(plain(f"   {improvement.command}")), soft_wrap=True)
    if found.left_out:
        console.print(Text(f"{len(found.left_out)} more changes were not tried for want of time; give more --time"))
    console.print(Text(plain(found.verdict)), soft_wrap=True)


def _difference(costs: Seconds) -> tuple[str, str]:
    return f"{1e3 * costs.value:+.3f}", f"{1e3 * costs.low:+.3f} to {1e3 * costs.high:+.3f}"


def print_model(found: Mapping[str, Any]) -> None:
    """What `describe` found in an ONNX file."""
    console = Console(markup=False, emoji=False)
    for what in ("inputs", "outputs"):
        console.print(Text(f"{what}: " + ", ".join(f"{plain(name)} {kind}" for name, kind in found[what].items())))
    operators = ", ".join(f"{count} {name}" for name, count in found["nodes"].items())
    console.print(Text(f"opset {found['opset']}, IR version {found['ir_version']}; {plain(operators)}"))
    console.print(Text(f"{_millions(found['macs'])} MACs for one input, {found['parameters']:,} parameters"))
    table = Table("layer", "operator", "weight", "MACs", "parameters", "rank", "90 % of Σσ²", box=None, pad_edge=False)
    for layer in found["layers"]:
        shape, spectrum = "×".join(map(str, layer["shape"])), layer["spectrum"]
        ranks = ("", "") if spectrum is None else ("{rank}/{full_rank}".format(**spectrum), str(spectrum["rank_90"]))
        row = (layer["operator"], shape, _millions(layer["macs"]), f"{layer['parameters']:,}", *ranks)
        table.add_row(plain(layer["name"]), *row)
    console.print(table)
    channels = Table("coupled layers", "channels", "after folding", "reason", box=None, pad_edge=False)
    for group in found["groups"].values():
        members = plain(", ".join(group["members"]))
        channels.add_row(members, str(group["channels"]), str(len(group["kept"])), plain(group["reason"]))
    console.print(channels)
    if found["denormals"]:
        console.print(Text(f"{found['denormals']:,} denormal weights slow the CPU down; `rankfold fold` flushes them"))
    for miss in found["misses"]:
        console.print(Text(f"{plain(miss['node'])} ({plain(miss['operator'])}): {miss['why']}"))


def _millions(macs: int | None) -> str:
    return "unknown" if macs is None else f"{macs / 1e6:.2f} M"
