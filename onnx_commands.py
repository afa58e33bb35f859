"""Commands that take any ONNX file: fold, compress, tune, quantize, model, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .errors import InputError

if TYPE_CHECKING:
    from .export.budget import Budget
    from .export.calibration import Preprocess
    from .records import Damage, ModelScore, Plan

Split = Literal["validation", "test"]
Source = Annotated[Path, typer.Argument(help="An ONNX file.", show_default=False)]
ShapeOption = Annotated[
    list[str] | None, typer.Option("--shape", help="Size of an open input: input:1x3x224x224; for each input once.")
]
InputsOption = Annotated[Path | None, typer.Option("--inputs", help="An npz file with an array for every input.")]
DeviceOption = Annotated[str, typer.Option(help="The device it is for: its tile, its runtime.")]
LimitOption = Annotated[float, typer.Option("--limit-s", min=1, help="Give up after so many seconds.")]
MemoryOption = Annotated[
    float | None, typer.Option("--memory-gb", min=0.5, help="Give up above it.  [default: 80 % of this machine's]")
]
MeanOption = Annotated[str, typer.Option(help="Of pixels from 0 to 1, a number a channel.")]
StdOption = Annotated[str, typer.Option(help="Pixels are divided by it, a number a channel.")]
SizeOption = Annotated[str | None, typer.Option(help="Height x width.  [default: the model's]")]
CropOption = Annotated[float | None, typer.Option(min=0.01, max=1, help="Share of the centre square kept.")]
Colors = Literal["rgb", "bgr"]
Layout = Literal["nchw", "nhwc"]
ColorsOption = Annotated[Colors, typer.Option(help="Order of the channels.")]
LayoutOption = Annotated[Layout, typer.Option(help="Order of the axes.")]
TargetOption = Annotated[str | None, typer.Option(help="Oldest ONNX Runtime that must read it, e.g. 1.17.")]
TileOption = Annotated[str, typer.Option(help="Round channels and ranks up to this; auto: the device's.")]
ThreadsOption = Annotated[int, typer.Option(min=1, max=1024, help="Threads inside one network.")]
TableOption = Annotated[Path | None, typer.Option(help="The latency table.  [default: in ~/.cache/rankfold]")]
Goal = Literal["latency", "size", "peak-memory"]
CompressForm = Literal["auto", "channel", "input-channel", "spatial", "tucker-2", "linear"]

FOLD_EXAMPLES = (
    "Examples:  [bold]rankfold fold detector.onnx -o small.onnx --shape images:1x3x640x640[/]   "
    "[bold]rankfold fold bert.onnx -o small.onnx --shape input_ids:1x64 --target-ort 1.17 --tile 16[/]"
)
MODEL_EXAMPLES = (
    "Examples:  [bold]rankfold model detector.onnx --shape images:1x3x640x640[/]   "
    "[bold]rankfold model resnet.onnx --json > resnet.json[/]"
)
EVALUATE_EXAMPLES = (
    "Examples:  [bold]rankfold evaluate runs/glyphs-dec3-0 --split test[/]   "
    "[bold]rankfold evaluate small.onnx --data images/ --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225[/]   "
    "[bold]rankfold evaluate small.onnx --data images/ --reference model.onnx[/]   "
    "[bold]rankfold evaluate small.onnx --metric 'python eval.py {model}'[/]"
)

TABLE_EXAMPLE = "Example:  [bold]rankfold latency-table fill model.onnx --threads 2[/]"
COMPRESS_EXAMPLES = (
    "Examples:  [bold]rankfold compress model.onnx -o small.onnx --budget 0.6 --data images/[/]   "
    "[bold]rankfold compress model.onnx -o small.onnx --max-drop 0.5 --data images/[/]   "
    "[bold]rankfold compress model.onnx -o small.onnx --latency 3ms --threads 2 --data images/[/]   "
    "[bold]rankfold compress model.onnx -o small.onnx --macs 0.7 --data images/[/]   "
    "[bold]rankfold compress model.onnx -o small.onnx --macs 0.5 --frontier --plan-only[/]   "
    "[bold]rankfold compress model.onnx -o small.onnx --budget-bytes 500000 --data images/[/]   "
    "[bold]rankfold compress model.onnx -o small.onnx --plan small.plan.json --data images/[/]"
)


QUANTIZE_EXAMPLES = (
    "Examples:  [bold]rankfold quantize small.onnx -o small.int8.onnx --data images/ --mean 0.485,0.456,0.406 "
    "--std 0.229,0.224,0.225[/]"
)
TUNE_EXAMPLES = (
    "Examples:  [bold]rankfold tune small.onnx -o tuned.onnx --teacher model.onnx --data images/[/]   "
    "[bold]rankfold tune small.onnx -o tuned.onnx --teacher model.onnx --data cifar.npz --steps 3000 "
    "--augment flip-shift[/]"
)


def fold(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folded file; its records lie beside it.")],
    device: DeviceOption = "host",
    tile: TileOption = "auto",
    target_ort: TargetOption = None,
    shape: ShapeOption = None,
    inputs: InputsOption = None,
    limit_s: LimitOption = 1800.0,
    memory_gb: MemoryOption = None,
) -> None:
    """Take dead channels, constants and BatchNorm out of any ONNX file, exactly: OUT.onnx, .plan.json, .parity.json."""
    from .onnx_stages import fold_file
    from .terminal import print_plan

    plan, parity = fold_file(
        source,
        output,
        device=device,
        tile=tile,
        target_ort=target_ort,
        shapes=shape or (),
        inputs=inputs,
        limit_s=limit_s,
        memory_bytes=_bytes(memory_gb),
    )
    print_plan(plan)
    worst = max(parity.checks, key=lambda check: check.relative)
    gone = sum(group.channels - len(group.kept) for group in plan.groups.values())
    print(f"{output}: {gone} channels folded, {_megabytes(source)} → {_megabytes(output)}, ", end="")
    print(f"largest relative error {worst.relative:.1e} (allowed {worst.bound or 0:.1e})")


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
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Print the plan; write only OUT.plan.json.")] = False,
    frontier: Annotated[bool, typer.Option("--frontier", help="Also harm against MACs, or against time.")] = False,
    device: DeviceOption = "host",
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
    from .export.compress import AUTO_FORMS, Wish
    from .onnx_stages import compress_file
    from .records import Plan
    from .terminal import print_curves, print_frontier, print_plan

    how = _preprocess(mean, std, size, crop, colors, layout)
    wish = Wish(
        forms=AUTO_FORMS if form == "auto" else (form,),
        energy=energy,
        macs=macs,
        budget_bytes=budget_bytes,
        time=_limits(budget, latency, damage, max_drop, objective),
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
        device=device,
        threads=threads,
        table=table,
        tile=tile,
        target_ort=target_ort,
        shapes=shape or (),
        inputs=inputs,
        limit_s=limit_s,
        memory_bytes=_bytes(memory_gb),
    )
    print_plan(done.plan)
    if done.frontier:
        print_frontier(done.frontier)
    if done.curves is not None:
        print_curves(done.curves)
    print(_compressed(source, output, done.plan, plan_only) + _damaged(done.damage))
    if done.plan.timing is not None and done.plan.timing.verdict:
        print(done.plan.timing.verdict)


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
    from .export.compress import AUTO_FORMS
    from .files import require_writable
    from .onnx_stages import layer_times
    from .records import LayerTable
    from .terminal import print_layer_times

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
        memory_bytes=_bytes(memory_gb),
    )
    if not rows:
        print(f"{source}: the table has no layer of it on {device}; fill it with rankfold latency-table fill")
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


def quantize(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="The int8 file; its records lie beside it.")],
    data: Annotated[Path, typer.Option("--data", help="Calibration: an npz file or images; no labels.")],
    samples: Annotated[int, typer.Option(min=1, help="Calibration inputs used, the first ones of --data.")] = 256,
    device: DeviceOption = "host",
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
    """Fold any ONNX file and quantise it to int8 (QDQ), its ranges by the device's instructions."""
    from .onnx_stages import quantize_file

    how = _preprocess(mean, std, size, crop, colors, layout)
    parity = quantize_file(
        source,
        output,
        data=data,
        most=samples,
        how=how,
        device=device,
        tile=tile,
        target_ort=target_ort,
        shapes=shape or (),
        inputs=inputs,
        limit_s=limit_s,
        memory_bytes=_bytes(memory_gb),
    )
    print(f"{output}: {_megabytes(source)} → {_megabytes(output)}{_damaged(parity.damage)}")
    print("whether it is faster only `rankfold bench` can say")


def tune(
    source: Annotated[Path, typer.Argument(help="The small ONNX file.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The tuned file; its record lies beside it.")],
    teacher: Annotated[Path, typer.Option(help="The model that the small one was made from.")],
    data: Annotated[Path, typer.Option("--data", help="Inputs to learn from: an npz file or images; no labels.")],
    samples: Annotated[int, typer.Option(min=2, help="Inputs used, the first ones of --data; held in memory.")] = 50000,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Inputs a step.")] = 64,
    lr: Annotated[float, typer.Option(min=0, help="Largest learning rate, of Adam.")] = 1e-3,
    augment: Annotated[Literal["none", "shift", "flip-shift"], typer.Option(help="For images.")] = "none",
    seed: Annotated[int, typer.Option(help="Of the order of the inputs.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    save_every_s: Annotated[float, typer.Option(min=0, help="How often its state is kept, to go on from.")] = 30.0,
    mean: MeanOption = "0",
    std: StdOption = "1",
    size: SizeOption = None,
    crop: CropOption = None,
    colors: ColorsOption = "rgb",
    layout: LayoutOption = "nchw",
) -> None:
    """Win accuracy back: a small ONNX file learns to do what its original does, without labels. Needs torch."""
    try:
        import torch
    except ImportError as error:
        raise InputError("tune needs torch, which is not installed; pip install 'rankfold[train]'") from error
    from .onnx_stages import tune_file
    from .train.tune import Settings

    torch.set_num_threads(threads)
    how = _preprocess(mean, std, size, crop, colors, layout)
    settings = Settings(steps=steps, batch=batch, lr=lr, seed=seed, augment=augment)
    done = tune_file(source, teacher, output, settings, data=data, most=samples, how=how, save_every_s=save_every_s)
    text = f"output error {done.error_before:.2%} → {done.error_after:.2%}"
    if done.agreement_before is not None and done.agreement_after is not None:
        text += f", same top class {done.agreement_before:.2%} → {done.agreement_after:.2%}"
    print(f"{output}: {text} of {done.held_out} held-out inputs; nothing was learned from them")


def _damaged(damage: Damage | None) -> str:
    if damage is None:
        return ""
    text = f"; output error {damage.error:.2%}"
    if damage.agreement is not None:
        text += f", same top class {damage.agreement:.2%}"
    if damage.top1_before is not None and damage.top1_after is not None:
        text += f", top-1 {damage.top1_before:.2%} → {damage.top1_after:.2%}"
    return f"{text} on {damage.n} calibration inputs"


def _compressed(source: Path, output: Path, plan: Plan, plan_only: bool) -> str:
    layers = plan.layers.values()
    before, after = (
        sum(macs or 0 for macs in column) for column in ([x.macs_dense for x in layers], [x.macs for x in layers])
    )
    factored = sum(layer.form != "dense" for layer in layers)
    what = f"{factored} of {len(plan.layers)} layers factorised, {before / 1e6:.2f} → {after / 1e6:.2f} M MACs"
    if plan_only:
        return f"{output.with_suffix('.plan.json')}: {what} if it is carried out"
    return f"{output}: {what}, {_megabytes(source)} → {_megabytes(output)}"


def model(
    source: Source,
    device: DeviceOption = "host",
    shape: ShapeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
    limit_s: LimitOption = 600.0,
    memory_gb: MemoryOption = None,
) -> None:
    """What is in an ONNX file: layers, MACs, ranks, dead channels, denormals, and what misses the fast kernels."""
    from .onnx_stages import describe_file
    from .terminal import print_model

    text = describe_file(source, device=device, shapes=shape or (), limit_s=limit_s, memory_bytes=_bytes(memory_gb))
    if as_json:
        print(text)
    else:
        print_model(json.loads(text))


def evaluate(
    source: Annotated[Path, typer.Argument(help="A run folder that was exported, or an ONNX file.")],
    data: Annotated[Path | None, typer.Option("--data", help="An npz file, or for an ONNX file also images.")] = None,
    split: Annotated[Split, typer.Option(help="Of a run's data: choose on validation, look at test once.")] = "test",
    reference: Annotated[Path | None, typer.Option(help="Without labels: the original to agree with.")] = None,
    metric: Annotated[str | None, typer.Option(help="A command with {model}; its last line is the number.")] = None,
    mean: MeanOption = "0",
    std: StdOption = "1",
    size: SizeOption = None,
    crop: CropOption = None,
    colors: ColorsOption = "rgb",
    layout: LayoutOption = "nchw",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where an ONNX file's score goes.")] = None,
    limit_s: LimitOption = 1800.0,
    memory_gb: MemoryOption = None,
) -> None:
    """Score a run's networks (evaluation.json), or one ONNX file by labels, its original or your own command."""
    if source.is_dir():
        _evaluate_run(source, data, split)
        return
    from .onnx_stages import evaluate_file

    how = _preprocess(mean, std, size, crop, colors, layout)
    score = evaluate_file(
        source,
        data=data,
        reference=reference,
        metric=metric,
        how=how,
        output=output,
        limit_s=limit_s,
        memory_bytes=_bytes(memory_gb),
    )
    print(_sentence(source, score))


def _evaluate_run(run_dir: Path, data: Path | None, split: Split) -> None:
    from .stages import evaluate_run

    for score in evaluate_run(run_dir, data, split).scores:
        print(f"{score.name}: {score.value:.2%} ({score.low:.2%} to {score.high:.2%}) of {score.n} {split} images")


def _sentence(source: Path, score: ModelScore) -> str:
    if score.n is None:
        return f"{source.name}: {score.value:g}, {score.metric} on {score.data}"
    interval = f"({score.low:.2%} to {score.high:.2%})"
    note = "; there are no labels, so this says nothing about accuracy" if score.reference_sha256 else ""
    return f"{source.name}: {score.value:.2%} {interval}, {score.metric}, {score.n} inputs of {score.data}{note}"


def _preprocess(
    mean: str, std: str, size: str | None, crop: float | None, colors: Colors, layout: Layout
) -> Preprocess:
    from .export.calibration import Preprocess

    return Preprocess(_numbers("--mean", mean), _numbers("--std", std), _size(size), crop, colors, layout)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or any(abs(number) > 1e6 or number != number for number in numbers):
        raise InputError(f"{option} {text[:40]!r}: expected numbers such as 0.485,0.456,0.406")
    return numbers


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not all(part.isascii() and part.isdecimal() and 0 < int(part) <= 1 << 14 for part in (height, width or height)):
        raise InputError(f"--size {text[:40]!r}: expected height x width, such as 224x224")
    return int(height), int(width or height)


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else int(gigabytes * 1e9)


def _megabytes(path: Path) -> str:
    data = path.with_name(f"{path.name}.data")
    size = path.stat().st_size + (data.stat().st_size if data.is_file() else 0)
    return f"{size / 1e6:.2f} MB"
