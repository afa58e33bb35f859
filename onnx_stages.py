"""The stages for any ONNX file, each in a child with bounds on memory and time: all of its files are left, or none."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from .errors import InputError
from .files import making_folder, replacing_all, require_writable, sha256_of, write_bytes
from .records import (
    Compressed,
    Cost,
    CostKind,
    Explanation,
    Facts,
    LayerTime,
    ModelScore,
    Package,
    Parity,
    Plan,
    Tuned,
)
from .stages import named, probe_device, reserved_device
from .terminal import bars, progress, stderr_for_child

if TYPE_CHECKING:
    from .export.calibration import Preprocess
    from .export.compress import Wish
    from .train.tune import Settings


_AROUND_S = 600.0  # to open files, beside the time there is to measure


def fold_file(
    source: Path,
    output: Path,
    *,
    device: str = "host",
    tile: str = "auto",
    target_ort: str | None = None,
    shapes: Sequence[str] = (),
    inputs: Path | None = None,
    limit_s: float,
    memory_bytes: int | None = None,
) -> tuple[Plan, Parity]:
    """Fold a file exactly, for a device: `output`, .plan.json and .parity.json beside it, or nothing.

    The device's runtime decides opset and IR version unless `target_ort` does.
    """
    require_writable(output)
    tiles, runtime = _for_device(probe_device(device)[0], device, tile, target_ort)
    return fold_guarded(
        source,
        output,
        tile=tiles,
        target_ort=runtime,
        shapes=shapes,
        inputs=inputs,
        limit_s=limit_s,
        memory_bytes=memory_bytes,
    )


def fold_guarded(
    source: Path,
    output: Path,
    *,
    tile: int,
    target_ort: str | None = None,
    shapes: Sequence[str] = (),
    inputs: Path | None = None,
    limit_s: float,
    memory_bytes: int | None = None,
) -> tuple[Plan, Parity]:
    """`fold_file` with the tile known: the work in a child, the files moved into place by this process."""

    def work(folder: Path) -> list[str]:
        from .export.fold import fold_into
        from .runtime.inputs import given

        names: list[str] = []
        said = given(shapes, inputs)
        fold_into(folder, names, source, output.name, tile=tile, target_ort=target_ort, given=said)
        return names

    with _moved_up(output, work, limit_s, memory_bytes) as (folder, names):
        parity, plan = Parity.read(folder / names[0]), Plan.read(folder / names[1])
    return plan, parity


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

    `data` are calibration inputs, of which the first `most` are used; with `plan_only` only the plan is written.
    """
    require_writable(output)
    facts = probe_device(device)[0]
    tiles, runtime = _for_device(facts, device, tile, target_ort)

    def work(folder: Path) -> list[str]:
        from .devices import card
        from .export import compress
        from .runtime.inputs import given, parse_shapes
        from .runtime.latency import stopwatch
        from .runtime.turns import Options

        options = Options(threads=threads, shapes=parse_shapes(shapes), inputs=inputs)

        with bars(stderr) as new_bar, ExitStack() as stack:
            watch = None
            if wish.time is not None:
                transport = stack.enter_context(reserved_device(card.find(device), new_bar))
                watch = stopwatch(transport, facts, options, table, cost)
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
            )
            return job.into(folder, source, output.name)

    with stderr_for_child() as stderr, _moved_up(output, work, limit_s, memory_bytes) as (folder, names):
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
    tiles = _for_device(facts, device, tile, None)[0]

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
    facts = _on_tile(probe_device(device)[0], tile)
    given = {"--device": device if device != "host" else None, "--tile": tile if tile != "auto" else None}
    options = "".join(f" {name} {shlex.quote(value)}" for name, value in given.items() if value is not None)

    def work() -> str:
        from .devices import card
        from .export.explain import explain
        from .runtime.latency import stopwatch
        from .runtime.turns import Options

        with (
            TemporaryDirectory(prefix="rankfold-") as folder,
            bars(stderr) as new_bar,
            reserved_device(card.find(device), new_bar) as transport,
        ):
            watch = stopwatch(transport, facts, Options(threads=threads), Path(folder) / "table.sqlite")
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
    tiles = _on_tile(probe_device(device)[0], tile).tile
    errors: dict[str, float | None] = {}

    def work(folder: Path) -> list[str]:
        from .export.explain import make_into

        files, made = make_into(folder, first, second, output.name, names, tiles)
        return [json.dumps(made), *files]

    with _moved_up(output, work, limit_s, memory_bytes) as (_, found):
        errors.update(json.loads(found.pop(0)))
    return errors


def _on_tile(facts: Facts, tile: str) -> Facts:
    return facts if tile == "auto" else facts.model_copy(update={"tile": _whole("--tile", tile)})


def _for_device(facts: Facts, device: str, tile: str, target_ort: str | None) -> tuple[int, str | None]:
    """The tile, and the runtime that must read the file: what was asked for, or the device's own."""
    runtime = target_ort or (facts.onnxruntime_version if device != "host" else None)
    return facts.tile if tile == "auto" else _whole("--tile", tile), runtime


@contextmanager
def _moved_up(
    output: Path, work: Callable[[Path], list[str]], limit_s: float, memory_bytes: int | None
) -> Iterator[tuple[Path, list[str]]]:
    """A scratch folder in which `work` has written files, in a child; those still named at the end move up."""
    from .export.guard import guarded

    names: list[str] = []
    with replacing_all(output.parent, names) as folder:
        names += json.loads(guarded(lambda: json.dumps(work(folder)), memory_bytes=memory_bytes, limit_s=limit_s))
        yield folder, names


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
) -> tuple[Plan, Parity]:
    """Fold and quantise a file for a device's instructions: `output`, .plan.json and .parity.json, or nothing.

    Layers of `keep` stay float; `timed`, those that are faster so there; and so many that the outputs' error is at
    most `damage`.
    """
    require_writable(output)
    facts = probe_device(device)[0]
    tiles, runtime = _for_device(facts, device, tile, target_ort)

    def work(folder: Path) -> list[str]:
        from .devices import card
        from .export.quantize import Int8, needs_reduced_range, quantize_into
        from .runtime.inputs import given, parse_shapes
        from .runtime.latency import stopwatch
        from .runtime.turns import Options

        options = Options(threads=threads, shapes=parse_shapes(shapes), inputs=inputs)
        with bars(stderr) as new_bar, ExitStack() as stack:
            watch = None
            if timed:
                transport = stack.enter_context(reserved_device(card.find(device), new_bar))
                watch = stopwatch(transport, facts, options, table)
            int8 = Int8(needs_reduced_range(facts.isa), method, keep, damage, watch, device)
            return quantize_into(
                folder,
                source,
                output.name,
                data=data,
                most=most,
                how=how,
                int8=int8,
                tile=tiles,
                target_ort=runtime,
                given=given(shapes, inputs),
                report=progress(new_bar),
            )

    with stderr_for_child() as stderr, _moved_up(output, work, limit_s, memory_bytes) as (folder, names):
        parity, plan = Parity.read(folder / names[0]), Plan.read(folder / names[1])
    return plan, parity


def package_file(
    source: Path,
    output: Path,
    *,
    shapes: Sequence[str] = (),
    inputs: Path | None = None,
    seed: int = 0,
    limit_s: float,
    memory_bytes: int | None = None,
) -> Package:
    """Make the folder `output` of a model, for firmware: all of it, or nothing; see `export.package`."""
    from .export.guard import guarded

    with making_folder(output) as folder:

        def work() -> str:
            from .export.package import package_into
            from .runtime.inputs import given

            return package_into(folder, source, given=given(shapes, inputs), seed=seed).model_dump_json()

        return Package.model_validate_json(guarded(work, memory_bytes=memory_bytes, limit_s=limit_s))


def tune_file(
    source: Path,
    teacher: Path,
    output: Path,
    settings: Settings,
    *,
    data: Path,
    most: int,
    how: Preprocess,
    save_every_s: float,
) -> Tuned:
    """Tune a small model on its original: `output` and .tune.json beside it, or nothing.

    An interrupted run goes on where it was: its state lies beside `output` until it is done.
    """
    from .export.calibration import load
    from .export.graphs import with_weights
    from .runtime import costs
    from .train.tune import Progress, held_out, tune

    require_writable(output)
    small, original = costs.load(_existing(source)), costs.load(_existing(teacher))
    samples = load(data, small, how)
    count = min(samples.count, most)
    identity = {"source": sha256_of(source), "teacher": sha256_of(teacher), "data": data.name, "inputs": count}
    state = output.with_suffix(".tune.safetensors")
    with bars() as new_bar:
        bar = new_bar("tune")

        def show(now: Progress) -> None:
            bar.show(now.step, now.steps, now.left_s, f"loss {now.loss:.4f}")

        feed = samples.read(0, count)
        weights, looks = tune(
            small,
            original,
            feed,
            settings,
            state=state,
            identity=identity,
            save_every_s=save_every_s,
            on_progress=show,
        )
    first, best = looks[0], min(looks, key=lambda look: look.error)
    held = held_out(count)
    record = Tuned(
        source_sha256=identity["source"],
        teacher_sha256=identity["teacher"],
        data=samples.name,
        learned_from=count - held,
        held_out=held,
        steps=settings.steps,
        batch=settings.batch,
        learning_rate=settings.lr,
        seed=settings.seed,
        augment=settings.augment,
        best_step=best.step,
        error_before=first.error,
        error_after=best.error,
        agreement_before=first.agreement,
        agreement_after=best.agreement,
    )
    record_name = f"{output.stem}.tune.json"
    with replacing_all(output.parent, [record_name, output.name]) as folder:
        record.write(folder / record_name)
        write_bytes(folder / output.name, with_weights(small, weights).SerializeToString())
    state.unlink(missing_ok=True)
    return record


def count_models(
    models: Sequence[Path],
    *,
    device: str,
    layers: bool = False,
    shapes: Sequence[str] = (),
    inputs: Path | None = None,
    output: Path | None = None,
    limit_s: float,
    memory_bytes: int | None = None,
) -> Cost:
    """Instructions of each model on an emulated device, with `layers` of each layer too; `output` is the record."""
    from .devices import card
    from .export.guard import guarded
    from .runtime.counts import Counting
    from .runtime.inputs import parse_shapes
    from .runtime.turns import Options

    if output is not None:
        require_writable(output)
    sources = named(models)
    counting = Counting(card.find(device), Options(shapes=parse_shapes(shapes), inputs=inputs))

    def work() -> str:
        from .export.instructions import layer_counts

        with bars(stderr) as new_bar:
            return counting.cost(sources, layer_counts if layers else None, progress(new_bar)).model_dump_json()

    with stderr_for_child() as stderr:
        found = Cost.model_validate_json(guarded(work, memory_bytes=memory_bytes, limit_s=limit_s))
    if output is not None:
        found.write(output)
    return found


def describe_file(
    source: Path, *, device: str = "host", shapes: Sequence[str] = (), limit_s: float, memory_bytes: int | None = None
) -> str:
    """`export.describe.Described` as JSON."""
    from .export.guard import guarded

    facts = probe_device(device)[0]

    def work() -> str:
        from .export.describe import described_json
        from .runtime.inputs import given

        return described_json(source, layout=facts.layout, tile=facts.tile, given=given(shapes, None))

    return guarded(work, memory_bytes=memory_bytes, limit_s=limit_s)


def evaluate_file(
    source: Path,
    *,
    data: Path | None,
    reference: Path | None,
    metric: str | None,
    how: Preprocess,
    output: Path | None,
    device: str = "host",
    limit_s: float,
    memory_bytes: int | None = None,
) -> ModelScore:
    """Score one ONNX file, on a device, by labels or by its original where there are none; or by a command, here."""
    if (metric is None) == (data is None):
        raise InputError("give --data, or --metric with a command, to say what a good model is")
    if output is not None:
        require_writable(output)
    if metric is not None:
        if device != "host":
            raise InputError("--metric runs a command here; leave out --device, or give --data")
        from .export.metric import by_command

        score = by_command(metric, _existing(source), limit_s)
    else:
        score = _score_on(source, data, reference, how, device, limit_s, memory_bytes)
    if output is not None:
        score.write(output)
    return score


def _score_on(
    source: Path,
    data: Path | None,
    reference: Path | None,
    how: Preprocess,
    device: str,
    limit_s: float,
    memory_bytes: int | None,
) -> ModelScore:
    from .devices import card
    from .export.guard import guarded
    from .runtime.serving import persistently

    def work() -> str:
        from .export.metric import on_data

        assert data is not None, "the caller checked it"
        with (
            bars(stderr) as new_bar,
            nullcontext() if device == "host" else reserved_device(card.find(device), new_bar) as transport,
        ):
            return persistently(partial(on_data, source, data, reference, how, transport)).model_dump_json()

    with stderr_for_child() as stderr:
        answer = guarded(work, memory_bytes=memory_bytes, limit_s=limit_s)
    return ModelScore.model_validate_json(answer)


def _existing(source: Path) -> Path:
    if not source.is_file():
        raise InputError(f"no model {source}; give an .onnx file, or a run folder that `rankfold export` finished")
    return source


def _whole(option: str, text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise InputError(f"{option} {text[:40]!r}: expected auto or a whole number from 1 to 1024")
    return int(text)
