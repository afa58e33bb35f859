"""The stages that go by a device's times: compress, its latency table, explain. See onnx_stages.py."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from .errors import InputError
from .files import require_writable
from .guarded import for_device, moved_up, on_tile, watching
from .records import Compressed, CostKind, Explanation, LayerTime
from .stages import probe_device, reserved_device
from .terminal import bars, progress, stderr_for_child

if TYPE_CHECKING:
    from .export.calibration import Preprocess
    from .export.wish import Wish


_AROUND_S = 600.0  # to open files, beside the time there is to measure


def compress_file(
    source: Path,
    output: Path,
    wish: Wish,
    *,
    data: Path | None = None,
    most: int,
    how: Preprocess,
    plan_only: bool = False,
    frontier: bool = False,
    int8: bool = False,
    device: str = "host",
    cost: CostKind = "time",
    threads: int = 1,
    table: Path | None = None,
    tile: str = "auto",
    target_ort: str | None = None,
    shapes: Sequence[str] = (),
    inputs: Path | None = None,
    limit_s: float,
    memory_bytes: int | None = None,
) -> Compressed:
    """Compress a file for a device: `output`, .plan.json and .parity.json beside it, or nothing; see `fold_file`.

    `data` are calibration inputs, of which the first `most` are used; with `plan_only` only the plan is written. With
    `int8` a budget of time is one of int8, and the small file quantised lies beside it, `OUT.int8.onnx` with its own
    records; see `quantize_file`.
    """
    require_writable(output)
    if int8 and (data is None or plan_only):
        raise InputError("--int8: goes with --data, which gives the ranges, and without --plan-only")
    facts = probe_device(device)[0]
    tiles, runtime = for_device(facts, device, tile, target_ort)

    def work(folder: Path) -> list[str]:
        from .export import compress
        from .export.calibration import first
        from .export.quantize import Int8, int8_name, needs_reduced_range, quantize_into
        from .runtime.inputs import given, parse_shapes
        from .runtime.turns import Options

        options = Options(threads=threads, shapes=parse_shapes(shapes), inputs=inputs)
        reduced = needs_reduced_range(facts.isa)
        by_int8 = Int8(reduced) if int8 and cost == "time" else None
        with (
            bars(stderr) as new_bar,
            nullcontext() if wish.time is None else watching(device, facts, options, new_bar, table, cost) as watch,
        ):
            job = compress.Job(
                replace(wish, tile=tiles),
                data=data,
                most=most,
                how=how,
                plan_only=plan_only,
                frontier=frontier,
                target_ort=runtime,
                given=given(shapes, inputs),
                report=progress(new_bar),
                watch=watch,
                device=device,
                int8=by_int8,
            )
            names = job.into(folder, source, output.name)
            if int8:
                assert data is not None, "checked above"
                clock = watch if cost == "time" else None
                names[1:1] = quantize_into(
                    folder,
                    folder / output.name,
                    int8_name(output.name),
                    samples_for=partial(first, data, most, how),
                    int8=Int8(reduced, watch=clock, device=device),
                    tile=tiles,
                    target_ort=runtime,
                    given=given(shapes, inputs),
                    report=progress(new_bar),
                )
            return names

    with stderr_for_child() as stderr, moved_up(output, work, limit_s, memory_bytes) as (folder, names):
        done = Compressed.read(folder / names.pop(0))
    return done


def layer_times(
    source: Path,
    *,
    forms: Sequence[str],
    fill: bool,
    device: str = "host",
    threads: int = 1,
    table: Path | None = None,
    tile: str = "auto",
    shapes: Sequence[str] = (),
    inputs: Path | None = None,
    limit_s: float,
    memory_bytes: int | None = None,
) -> list[LayerTime]:
    """What the latency table says of a file's layers; with `fill` what it lacks is timed first."""
    from .export.guard import guarded

    facts = probe_device(device)[0]
    tiles = for_device(facts, device, tile, None)[0]

    def work() -> str:
        from .devices import card
        from .devices.reach import transport_of
        from .export.timing import times_of_file
        from .runtime.inputs import given
        from .runtime.latency import stopwatch, table_path
        from .runtime.turns import Options

        path = table or table_path()
        if not fill and not path.exists():
            raise InputError(f"no latency table at {path}; fill it first: rankfold latency-table fill {source}")
        there = card.find(device)
        with (
            bars(stderr) as new_bar,
            reserved_device(there, new_bar) if fill else nullcontext(transport_of(there)) as transport,
        ):
            watch = stopwatch(transport, facts, Options(threads=threads), path)
            said = given(shapes, inputs)
            found = times_of_file(source, said, forms, tiles, watch, fill=fill, report=progress(new_bar))
        return json.dumps([row.model_dump() for row in found])

    with stderr_for_child() as stderr:
        answer = guarded(work, memory_bytes=memory_bytes, limit_s=limit_s)
    return [LayerTime.model_validate(row) for row in json.loads(answer)]


def explain_files(
    first: Path,
    second: Path,
    output: Path,
    *,
    device: str = "host",
    threads: int = 1,
    time_s: float,
    tile: str = "auto",
    limit_s: float,
    memory_bytes: int | None = None,
) -> Explanation:
    """Measure why the second file is as fast as it is beside the first, and write the record."""
    from .export.guard import guarded

    require_writable(output)
    facts = on_tile(probe_device(device)[0], tile)
    given = {"--device": device if device != "host" else None, "--tile": tile if tile != "auto" else None}
    options = "".join(f" {name} {shlex.quote(value)}" for name, value in given.items() if value is not None)

    def work() -> str:
        from .export.explain import explain
        from .runtime.turns import Options

        with (
            TemporaryDirectory(prefix="rankfold-") as folder,
            bars(stderr) as new_bar,
            watching(device, facts, Options(threads=threads), new_bar, Path(folder) / "table.sqlite") as watch,
        ):
            told = {"device": device, "options": options, "time_s": time_s, "report": progress(new_bar)}
            return explain(first, second, watch, **told).model_dump_json()

    with stderr_for_child() as stderr:
        answer = guarded(work, memory_bytes=memory_bytes, limit_s=max(limit_s, 2 * time_s + _AROUND_S))
    found = Explanation.model_validate_json(answer)
    found.write(output)
    return found


def make_changes(
    first: Path,
    second: Path,
    output: Path,
    names: Sequence[str],
    *,
    device: str = "host",
    tile: str = "auto",
    limit_s: float,
    memory_bytes: int | None = None,
) -> dict[str, float | None]:
    """Write the second file with changes that `explain` found, its .parity.json beside it; the error of each change."""
    require_writable(output)
    tiles = on_tile(probe_device(device)[0], tile).tile
    errors: dict[str, float | None] = {}

    def work(folder: Path) -> list[str]:
        from .export.explain import make_into

        files, made = make_into(folder, first, second, output.name, names, tiles)
        return [json.dumps(made), *files]

    with moved_up(output, work, limit_s, memory_bytes) as (_, found):
        errors.update(json.loads(found.pop(0)))
    return errors
