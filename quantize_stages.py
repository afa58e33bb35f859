"""The stage of int8: any ONNX file, quantised for a device. See onnx_stages.py."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .files import require_writable
from .guarded import for_device, moved_up, watching
from .stages import probe_device
from .terminal import bars, progress, stderr_for_child

if TYPE_CHECKING:
    from .export.calibration import Preprocess


def quantize_file(
    source: Path,
    output: Path,
    *,
    data: Path,
    most: int,
    how: Preprocess,
    method: str | None = None,
    keep: Sequence[str] = (),
    damage: float | None = None,
    timed: bool = False,
    threads: int = 1,
    table: Path | None = None,
    device: str = "host",
    tile: str = "auto",
    target_ort: str | None = None,
    shapes: Sequence[str] = (),
    inputs: Path | None = None,
    limit_s: float,
    memory_bytes: int | None = None,
) -> None:
    """Fold and quantise a file for a device's instructions: `output`, .plan.json and .parity.json, or nothing.

    Layers of `keep` stay float; `timed`, those that are faster so there; and so many that the outputs' error is at
    most `damage`.
    """
    require_writable(output)
    facts = probe_device(device)[0]
    tiles, runtime = for_device(facts, device, tile, target_ort)

    def work(folder: Path) -> list[str]:
        from .export.calibration import first
        from .export.quantize import Int8, needs_reduced_range, quantize_into
        from .runtime.inputs import given, parse_shapes
        from .runtime.turns import Options

        options = Options(threads=threads, shapes=parse_shapes(shapes), inputs=inputs)
        with (
            bars(stderr) as new_bar,
            watching(device, facts, options, new_bar, table) if timed else nullcontext() as watch,
        ):
            int8 = Int8(needs_reduced_range(facts.isa), method, keep, damage, watch, device)
            return quantize_into(
                folder,
                source,
                output.name,
                samples_for=partial(first, data, most, how),
                int8=int8,
                tile=tiles,
                target_ort=runtime,
                given=given(shapes, inputs),
                report=progress(new_bar),
            )

    with stderr_for_child() as stderr, moved_up(output, work, limit_s, memory_bytes):
        pass
