"""Commands that take any ONNX file: fold, tune, quantize, package, model, evaluate."""

from __future__ import annotations

import json
import shlex
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
    from .records import ModelScore

Split = Literal["validation", "test"]
Method = Literal["auto", "minmax", "percentile-99.999", "percentile-99.99", "percentile-99.9", "entropy"]
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

QUANTIZE_EXAMPLES = (
    "Examples:  [bold]rankfold quantize small.onnx -o small.int8.onnx --data images/ --mean 0.485,0.456,0.406 "
    "--std 0.229,0.224,0.225[/]   "
    "[bold]rankfold quantize small.onnx -o small.int8.onnx --data images/ --timed --damage 0.01 --keep fc[/]"
)
PACKAGE_EXAMPLES = (
    "Examples:  [bold]rankfold package small.onnx -o board/[/]   "
    "[bold]rankfold package detector.onnx -o board/ --shape images:1x3x640x640[/]   "
    "[bold]rankfold package bert.onnx -o board/ --inputs example.npz[/]"
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
    from .tables import print_plan

    plan, parity = fold_file(
        source,
        output,
        device=device,
        tile=tile,
        target_ort=target_ort,
        shapes=shape or (),
        inputs=inputs,
        limit_s=limit_s,
        memory_bytes=memory_bytes(memory_gb),
    )
    print_plan(plan)
    worst = max(parity.checks, key=lambda check: check.relative)
    gone = sum(group.channels - len(group.kept) for group in plan.groups.values())
    print(f"{output}: {gone} channels folded, {megabytes(source)} → {megabytes(output)}, ", end="")
    print(f"largest relative error {worst.relative:.1e} (allowed {worst.bound or 0:.1e})")


def quantize(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="The int8 file; its records lie beside it.")],
    data: Annotated[Path, typer.Option("--data", help="Calibration: an npz file or images; no labels.")],
    samples: Annotated[
        int, typer.Option(min=1, help="Calibration inputs used, the first ones of --data; half of them judge.")
    ] = 256,
    method: Annotated[Method, typer.Option(help="How ranges are set; auto: the one that damages least.")] = "auto",
    keep: Annotated[list[str] | None, typer.Option(help="A layer to leave float; repeat for more.")] = None,
    damage: Annotated[
        float | None, typer.Option(help="Leave so many layers float that the outputs' error is at most this.")
    ] = None,
    timed: Annotated[
        bool, typer.Option("--timed", help="Time each layer on --device, and leave float what is faster so.")
    ] = False,
    threads: ThreadsOption = 1,
    table: TableOption = None,
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
    from .quantize_stages import quantize_file
    from .tables import print_int8

    how = preprocess(mean, std, size, crop, colors, layout)
    quantize_file(
        source,
        output,
        data=data,
        most=samples,
        how=how,
        method=None if method == "auto" else method,
        keep=keep or (),
        damage=damage,
        timed=timed,
        threads=threads,
        table=table,
        device=device,
        tile=tile,
        target_ort=target_ort,
        shapes=shape or (),
        inputs=inputs,
        limit_s=limit_s,
        memory_bytes=memory_bytes(memory_gb),
    )
    print_int8(source, output)
    if timed:
        print("shares of whole files timed side by side; `rankfold bench` says it with an interval")
    else:
        print("whether it is faster only `rankfold bench` can say")


def package(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make; it must not be there yet.")],
    shape: ShapeOption = None,
    inputs: InputsOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the test inputs, unless --inputs has them.")] = 0,
    limit_s: LimitOption = 1800.0,
    memory_gb: MemoryOption = None,
) -> None:
    """Make the folder for firmware: model, .ort, required operators, test data, examples, and a check for the board."""
    from .onnx_stages import package_file

    made = package_file(
        source,
        output,
        shapes=shape or (),
        inputs=inputs,
        seed=seed,
        limit_s=limit_s,
        memory_bytes=memory_bytes(memory_gb),
    )
    size = sum(file.size_bytes for file in made.files)
    print(
        f"{output}: {len(made.files)} files, {size / 1e6:.2f} MB, outputs may be off by {made.tolerance:.1e} on a board"
    )
    print(f"fill in {output / 'LICENSES'}; on the board: sh {shlex.quote(str(Path(output.name) / 'verify.sh'))}")


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
    how = preprocess(mean, std, size, crop, colors, layout)
    settings = Settings(steps=steps, batch=batch, lr=lr, seed=seed, augment=augment)
    done = tune_file(source, teacher, output, settings, data=data, most=samples, how=how, save_every_s=save_every_s)
    text = f"output error {done.error_before:.2%} → {done.error_after:.2%}"
    if done.agreement_before is not None and done.agreement_after is not None:
        text += f", same top class {done.agreement_before:.2%} → {done.agreement_after:.2%}"
    print(f"{output}: {text} of {done.held_out} held-out inputs; nothing was learned from them")


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
    from .tables import print_model

    text = describe_file(
        source, device=device, shapes=shape or (), limit_s=limit_s, memory_bytes=memory_bytes(memory_gb)
    )
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
    device: DeviceOption = "host",
    limit_s: LimitOption = 1800.0,
    memory_gb: MemoryOption = None,
) -> None:
    """Score a run's networks (evaluation.json), or one ONNX file by labels, its original or your own command."""
    if source.is_dir():
        if device != "host":
            raise InputError(f"a run is scored here; on {device} score its files, such as {source / 'compact.onnx'}")
        _evaluate_run(source, data, split)
        return
    from .onnx_stages import evaluate_file

    how = preprocess(mean, std, size, crop, colors, layout)
    score = evaluate_file(
        source,
        data=data,
        reference=reference,
        metric=metric,
        how=how,
        output=output,
        device=device,
        limit_s=limit_s,
        memory_bytes=memory_bytes(memory_gb),
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
