"""`rankfold explain`: why one model is as fast as it is beside another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import InputError
from .options import DeviceOption, LimitOption, MemoryOption, ThreadsOption, TileOption, memory_bytes

EXPLAIN_EXAMPLES = (
    "Examples:  [bold]rankfold explain dense.onnx small.onnx[/]   "
    "[bold]rankfold explain dense.onnx small.onnx --threads 2 --time 10m -o explanation.json[/]   "
    '[bold]rankfold explain dense.onnx small.onnx --make "conv1 33 → 32" -o better.onnx[/]'
)
_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def explain(
    first: Annotated[Path, typer.Argument(help="The model that it is compared with, most often the dense one.")],
    second: Annotated[Path, typer.Argument(help="The model to explain, made from the first by whatever tool.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The record; with --make the model.  [default: explanation.json]"),
    ] = None,
    device: DeviceOption = "host",
    threads: ThreadsOption = 1,
    time: Annotated[str, typer.Option("--time", help="To measure for, e.g. 90s or 5m.")] = "5m",
    make: Annotated[
        list[str] | None, typer.Option(help="Make this change instead, by its name; may be repeated.")
    ] = None,
    tile: TileOption = "auto",
    limit_s: LimitOption = 7200.0,
    memory_gb: MemoryOption = None,
) -> None:
    """Where the time went that the MACs promised to save: a cause a bar, each measured on the file without it."""
    from .compress_stages import explain_files, make_changes
    from .tables import print_explanation
    from .terminal import plain

    bounds = {"limit_s": limit_s, "memory_bytes": memory_bytes(memory_gb)}
    if make:
        if output is None:
            raise InputError("--make writes a model; give -o better.onnx")
        errors = make_changes(first, second, output, make, device=device, tile=tile, **bounds)
        for name, error in errors.items():
            print(plain(f"{name}: {'exact' if error is None else f'a layer changed by {error:.2%} of its norm'}"))
        print(output)
        return
    path = output or Path("explanation.json")
    found = explain_files(
        first, second, path, device=device, threads=threads, time_s=seconds(time), tile=tile, **bounds
    )
    print_explanation(found)
    print(path)


def seconds(text: str) -> float:
    """`90s`, `5m` or `1h`. Raises InputError for anything else."""
    number = text.rstrip("smhin")
    unit = _UNITS.get(text[len(number) :] or "s")
    try:
        found = float(number) * (unit or float("nan"))
    except ValueError:
        found = float("nan")
    if not 1 <= found <= 86400:
        raise InputError(f"--time {text[:40]!r}: expected a time from 1s to 24h, such as 90s or 5m")
    return found
