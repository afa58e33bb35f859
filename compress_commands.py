"""`rankfold compress` and the latency table it goes by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .errors import InputError
from .options import (
    ColorsOption,
    CropOption,
    DeviceOption,
    InputsOption,
    LayoutOption,
    LimitOption,
    MeanOption,
    MemoryOption,
    ShapeOption,
    SizeOption,
    Source,
    StdOption,
    TableOption,
    TargetOption,
    ThreadsOption,
    TileOption,
    megabytes,
    memory_bytes,
    preprocess,
)

if TYPE_CHECKING:
    from .export.budget import Budget
    from .records import Plan

CostKind = Literal["time", "instructions"]
Goal = Literal["latency", "size", "peak-memory"]
CompressForm = Literal["auto", "channel", "input-channel", "spatial", "tucker-2", "linear"]

TABLE_EXAMPLE = "Example:  [bold]rankfold latency-table fill model.onnx --threads 2[/]"
COMPRESS_EXAMPLES = (
    "Examples:  [bold]rankfold compress model.onnx -o small.onnx --budget 0.6 --data images/[/]   "
    "[bold]rankfold compress model.onnx -o small.onnx --max-drop 0.5 --data images/[/]   "
    "[bold]rankfold compress model.onnx -o small.onnx --latency 3ms --threads 2 --data images/[/]   "
    "[bold]rankfold compress model.onnx -o small.onnx --macs 0.7 --data images/ --int8[/]   "
    "[bold]rankfold compress model.onnx -o small.onnx --macs 0.5 --frontier --plan-only[/]   "
    "[bold]rankfold compress model.onnx -o small.onnx --budget-bytes 500000 --data images/[/]   "
    "[bold]rankfold compress model.onnx -o small.onnx --plan small.plan.json --data images/[/]"
)


def compress(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="The small file; its records lie beside it.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Calibration: an npz file or images; labels serve --max-drop alone.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration inputs used, the first ones of --data.")] = 512,
    form: Annotated[CompressForm, typer.Option(help="How kernels are factored; auto: the best a layer.")] = "auto",
    budget: Annotated[float | None, typer.Option(help="Share of the file's time on --device, measured there.")] = None,
    latency: Annotated[str | None, typer.Option(help="The same as a time, e.g. 3ms.")] = None,
    damage: Annotated[float | None, typer.Option(help="The fastest with at most this error of the outputs.")] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="The fastest that loses at most so many points of top-1; see --data.")
    ] = None,
    objective: Annotated[Goal, typer.Option(help="What is to be least within --max-drop or --damage.")] = "latency",
    threads: ThreadsOption = 1,
    table: TableOption = None,
    energy: Annotated[float | None, typer.Option(min=0, max=1, help="Share of the sum of singular values.")] = None,
    macs: Annotated[float | None, typer.Option(min=0, max=1, help="Share of the folded model's MACs to keep.")] = None,
    budget_bytes: Annotated[int | None, typer.Option(min=1, help="Largest file, for those who lack flash.")] = None,
    plan: Annotated[Path | None, typer.Option(help="A .plan.json, as written before or changed by hand.")] = None,
    prune: Annotated[float | None, typer.Option(min=0, max=1, help="Share of the MACs to prune in channels.")] = None,
    widths: Annotated[bool, typer.Option("--widths", help="With a budget of time: fewer channels too.")] = False,
    keep: Annotated[list[str] | None, typer.Option(help="A layer to leave dense; repeat for more.")] = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Write OUT.int8.onnx too. A budget of time is then of what the original takes in int8."
        ),
    ] = False,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Print the plan; write only OUT.plan.json.")] = False,
    frontier: Annotated[bool, typer.Option("--frontier", help="Also harm against MACs, or against time.")] = False,
    device: DeviceOption = "host",
    cost: Annotated[
        CostKind, typer.Option(help="What --budget and the rest are of: on qemu-… instructions, a proxy.")
    ] = "time",
    tile: TileOption = "auto",
    target_ort: TargetOption = None,
    shape: ShapeOption = None,
    inputs: InputsOption = None,
    mean: MeanOption = "0",
    std: StdOption = "1",
    size: SizeOption = None,
    crop: CropOption = None,
    colors: ColorsOption = "rgb",
    layout: LayoutOption = "nchw",
    limit_s: LimitOption = 7200.0,
    memory_gb: MemoryOption = None,
) -> None:
    """Factorise the layers of any ONNX file, by damage per MAC: OUT.onnx, .plan.json, .parity.json."""
    from .compress_stages import compress_file
    from .export.quantize import int8_name
    from .export.wish import AUTO_FORMS, Wish
    from .records import Plan
    from .tables import damage_text, print_curves, print_frontier, print_int8, print_plan

    how = preprocess(mean, std, size, crop, colors, layout)
    limits = _limits(budget, latency, damage, max_drop, objective)
    if cost != "time" and limits is None:
        raise InputError(f"--cost {cost}: goes with --budget, --damage or --max-drop")
    wish = Wish(
        forms=AUTO_FORMS if form == "auto" else (form,),
        energy=energy,
        macs=macs,
        budget_bytes=budget_bytes,
        time=limits,
        plan=None if plan is None else Plan.read(plan),
        prune=prune,
        widths=widths,
        keep=keep or (),
    )
    done = compress_file(
        source,
        output,
        wish,
        data=data,
        most=samples,
        how=how,
        plan_only=plan_only,
        frontier=frontier,
        int8=int8,
        device=device,
        cost=cost,
        threads=threads,
        table=table,
        tile=tile,
        target_ort=target_ort,
        shapes=shape or (),
        inputs=inputs,
        limit_s=limit_s,
        memory_bytes=memory_bytes(memory_gb),
    )
    print_plan(done.plan)
    if done.frontier:
        print_frontier(done.frontier)
    if done.curves is not None:
        print_curves(done.curves)
    print(_compressed(source, output, done.plan, plan_only) + damage_text(done.damage))
    if done.plan.timing is not None and done.plan.timing.verdict:
        print(done.plan.timing.verdict)
    if int8:
        print_int8(output, output.with_name(int8_name(output.name)))


def latency_table(
    action: Annotated[
        Literal["fill", "show"],
        typer.Argument(help="fill: time what the table lacks; show: what it knows, nothing is timed."),
    ],
    source: Source,
    form: Annotated[CompressForm, typer.Option(help="How kernels are factored; auto: in every way.")] = "auto",
    device: DeviceOption = "host",
    threads: ThreadsOption = 1,
    table: TableOption = None,
    tile: TileOption = "auto",
    shape: ShapeOption = None,
    inputs: InputsOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The rows as JSON, for training.")] = None,
    limit_s: LimitOption = 7200.0,
    memory_gb: MemoryOption = None,
) -> None:
    """How long the layers of an ONNX file take on a device, in every way to write them."""
    from .compress_stages import layer_times
    from .export.wish import AUTO_FORMS
    from .files import require_writable
    from .records import LayerTable
    from .tables import print_layer_times

    if output is not None:
        require_writable(output)
    rows = layer_times(
        source,
        forms=AUTO_FORMS if form == "auto" else (form,),
        fill=action == "fill",
        device=device,
        threads=threads,
        table=table,
        tile=tile,
        shapes=shape or (),
        inputs=inputs,
        limit_s=limit_s,
        memory_bytes=memory_bytes(memory_gb),
    )
    if not rows:
        why = "no layer of it can be written in another way"
        if action == "show":
            why = f"the table has no layer of it on {device}; fill it with rankfold latency-table fill"
        print(f"{source}: {why}")
        return
    print_layer_times(rows)
    if output is not None:
        LayerTable(device=device, threads=threads, rows=rows).write(output)


def _limits(
    budget: float | None, latency: str | None, damage: float | None, max_drop: float | None, objective: Goal
) -> Budget | None:
    from .export.budget import Budget

    if (budget, latency, damage, max_drop) == (None,) * 4:
        if objective != "latency":
            raise InputError(f"--objective {objective}: say what it may cost, with --max-drop or --damage")
        return None
    return Budget(
        share=budget,
        seconds=None if latency is None else seconds(latency),
        damage=damage,
        drop=None if max_drop is None else max_drop / 100,
        objective=objective,
    )


_UNITS_S = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


def seconds(text: str) -> float:
    """`3ms` → 0.003."""
    number = text.rstrip("µmus")
    try:
        return float(number) * _UNITS_S[text[len(number) :].strip()]
    except (ValueError, KeyError) as error:
        raise InputError(f"--latency {text!r}: expected a time such as 3ms, 250us or 0.1s") from error


def _compressed(source: Path, output: Path, plan: Plan, plan_only: bool) -> str:
    layers = plan.layers.values()
    before, after = (
        sum(macs or 0 for macs in column) for column in ([x.macs_dense for x in layers], [x.macs for x in layers])
    )
    factored = sum(layer.form != "dense" for layer in layers)
    what = f"{factored} of {len(plan.layers)} layers factorised, {before / 1e6:.2f} → {after / 1e6:.2f} M MACs"
    if plan_only:
        return f"{output.with_suffix('.plan.json')}: {what} if it is carried out"
    return f"{output}: {what}, {megabytes(source)} → {megabytes(output)}"
