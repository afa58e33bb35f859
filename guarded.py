"""What the stages for any ONNX file share: work in a child, files that are all left or none, and what a device says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError
from .files import replacing_all
from .records import CostKind, Facts
from .stages import reserved_device
from .terminal import Shown

if TYPE_CHECKING:
    from .runtime.latency import Stopwatch
    from .runtime.turns import Options


def on_tile(facts: Facts, tile: str) -> Facts:
    """The facts with the tile that was asked for."""
    return facts if tile == "auto" else facts.model_copy(update={"tile": _whole("--tile", tile)})


def for_device(facts: Facts, device: str, tile: str, target_ort: str | None) -> tuple[int, str | None]:
    """The tile, and the runtime that must read the file: what was asked for, or the device's own."""
    return on_tile(facts, tile).tile, target_ort or (facts.onnxruntime_version if device != "host" else None)


@contextmanager
def watching(
    device: str,
    facts: Facts,
    options: Options,
    new_bar: Callable[[str], Shown],
    table: Path | None = None,
    cost: CostKind = "time",
) -> Iterator[Stopwatch]:
    """A stopwatch on a device, which is reserved meanwhile."""
    from .devices import card
    from .runtime.latency import stopwatch

    with reserved_device(card.find(device), new_bar) as transport:
        yield stopwatch(transport, facts, options, table, cost)


@contextmanager
def moved_up(
    output: Path, work: Callable[[Path], list[str]], limit_s: float, memory_bytes: int | None
) -> Iterator[tuple[Path, list[str]]]:
    """A scratch folder in which `work` has written files, in a child; those still named at the end move up."""
    from .export.guard import guarded

    names: list[str] = []
    with replacing_all(output.parent, names) as folder:
        names += json.loads(guarded(lambda: json.dumps(work(folder)), memory_bytes=memory_bytes, limit_s=limit_s))
        yield folder, names


def _whole(option: str, text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise InputError(f"{option} {text[:40]!r}: expected auto or a whole number from 1 to 1024")
    return int(text)
