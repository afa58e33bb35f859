"""Options that several commands share, and what their words mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .errors import InputError

if TYPE_CHECKING:
    from .export.calibration import Preprocess

Source = Annotated[Path, typer.Argument(help="An ONNX file.", show_default=False)]
ShapeOption = Annotated[
    list[str] | None, typer.Option("--shape", help="Size of an open input: input:1x3x224x224; for each input once.")
]
InputsOption = Annotated[Path | None, typer.Option("--inputs", help="An npz file with an array for every input.")]
DeviceOption = Annotated[str, typer.Option(help="The device that it is for and runs on, of `devices list`.")]
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
DataOption = Annotated[
    Path | None, typer.Option("--data", help="An npz file: x_train, y_train, x_test, y_test; or a folder of images.")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Change one key: key.path=value.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Instead of the recipe's: a name, or package.module:factory.")
]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="Start from the weights in this file: .safetensors, or torch's.")
]
TableOption = Annotated[Path | None, typer.Option(help="The latency table.  [default: in ~/.cache/rankfold]")]


def recipe_changes(model: str | None, weights: Path | None, changes: Sequence[str] | None) -> list[str]:
    """What --model, --weights and --set change in a recipe, the last having the last word."""
    found = [] if model is None else [f"model={{ name = {json.dumps(model)} }}"]
    found += [] if weights is None else [f"model.arguments.weights={json.dumps(str(weights.resolve()))}"]
    return [*found, *(changes or ())]


def tile(text: str) -> int | None:
    """A channel multiple; None for `auto`."""
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise InputError(f"--tile {text!r}: expected auto or a whole number from 1 to 1024")
    return int(text)


def preprocess(mean: str, std: str, size: str | None, crop: float | None, colors: Colors, layout: Layout) -> Preprocess:
    """How data is made the model's input, from what the options say."""
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


def memory_bytes(gigabytes: float | None) -> int | None:
    """A bound on memory, None where there is none."""
    return None if gigabytes is None else int(gigabytes * 1e9)


def megabytes(path: Path) -> str:
    """A model's size, with the data file beside it."""
    data = path.with_name(f"{path.name}.data")
    size = path.stat().st_size + (data.stat().st_size if data.is_file() else 0)
    return f"{size / 1e6:.2f} MB"
