"""Commands that take any ONNX file: fold, model and evaluate. cli.py gives them their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .errors import InputError

if TYPE_CHECKING:
    from .records import ModelScore

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


def fold(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folded file; its records lie beside it.")],
    device: DeviceOption = "host",
    tile: Annotated[str, typer.Option(help="Round channel counts up to this; auto: the device's.")] = "auto",
    target_ort: Annotated[str | None, typer.Option(help="Oldest ONNX Runtime that must read it, e.g. 1.17.")] = None,
    shape: ShapeOption = None,
    inputs: InputsOption = None,
    limit_s: LimitOption = 1800.0,
    memory_gb: MemoryOption = None,
) -> None:
    """Take dead channels, constants and BatchNorm out of any ONNX file, exactly: OUT.onnx, .plan.json, .parity.json."""
    from .stages import fold_file
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


def model(
    source: Source,
    device: DeviceOption = "host",
    shape: ShapeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
    limit_s: LimitOption = 600.0,
    memory_gb: MemoryOption = None,
) -> None:
    """What is in an ONNX file: layers, MACs, ranks, dead channels, denormals, and what misses the fast kernels."""
    from .stages import describe_file
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
    mean: Annotated[str, typer.Option(help="Of pixels from 0 to 1, a number a channel.")] = "0",
    std: Annotated[str, typer.Option(help="Pixels are divided by it, a number a channel.")] = "1",
    size: Annotated[str | None, typer.Option(help="Height x width.  [default: the model's]")] = None,
    crop: Annotated[float | None, typer.Option(min=0.01, max=1, help="Share of the centre square kept.")] = None,
    colors: Annotated[Literal["rgb", "bgr"], typer.Option(help="Order of the channels.")] = "rgb",
    layout: Annotated[Literal["nchw", "nhwc"], typer.Option(help="Order of the axes.")] = "nchw",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where an ONNX file's score goes.")] = None,
    limit_s: LimitOption = 1800.0,
    memory_gb: MemoryOption = None,
) -> None:
    """Score a run's networks (evaluation.json), or one ONNX file by labels, its original or your own command."""
    if source.is_dir():
        _evaluate_run(source, data, split)
        return
    from .export.calibration import Preprocess
    from .stages import evaluate_file

    how = Preprocess(_numbers("--mean", mean), _numbers("--std", std), _size(size), crop, colors, layout)
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
