"""`rankfold cost`: instructions on an emulated board. cli.py gives it its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import InputError
from .options import InputsOption, LimitOption, MemoryOption, ShapeOption, memory_bytes

COST_EXAMPLES = (
    "Examples:  [bold]rankfold cost dense.onnx compact.onnx --device qemu-cortex-a72[/]   "
    "[bold]rankfold cost compact.onnx --layers --json[/]   "
    "[bold]rankfold cost compact.onnx --against cost.json[/]"
)
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def cost(
    models: Annotated[list[Path], typer.Argument(help="ONNX files; or a run folder.")],
    device: Annotated[str, typer.Option(help="An emulated device: qemu-….")] = "qemu-cortex-a72",
    layers: Annotated[bool, typer.Option("--layers", help="Count every layer alone, too.")] = False,
    shape: ShapeOption = None,
    inputs: InputsOption = None,
    at_most: Annotated[str | None, typer.Option(help="Exit 1 above so many instructions, e.g. 12.5M.")] = None,
    against: Annotated[Path | None, typer.Option(help="Exit 1 where a model takes over 0.1 % more than then.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the record goes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record.")] = False,
    limit_s: LimitOption = 1800.0,
    memory_gb: MemoryOption = None,
) -> None:
    """Instructions and SIMD multiply-adds of a run on an emulated board: exact, fit for CI; a proxy, never a time."""
    from .onnx_stages import count_models
    from .records import Cost
    from .runtime.counts import judge
    from .tables import print_cost

    bound = None if at_most is None else _instructions(at_most)
    before = None if against is None else Cost.read(against)
    found = count_models(
        models,
        device=device,
        layers=layers,
        shapes=shape or (),
        inputs=inputs,
        output=output,
        limit_s=limit_s,
        memory_bytes=memory_bytes(memory_gb),
    )
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        print_cost(found)
    judge(found, bound, before)


def _instructions(text: str) -> int:
    """`12.5M` → 12,500,000."""
    number = text.rstrip("kMG")
    try:
        found = float(number) * _UNITS[text[len(number) :]]
    except (ValueError, KeyError):
        found = 0.0
    if not 1 <= found <= 1e15:
        raise InputError(f"--at-most {text[:40]!r}: expected a number of instructions, such as 40000000 or 12.5M")
    return int(found)
