"""The stages for any ONNX file, each in a child with bounds on memory and time: all of its files are left, or none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError
from .files import making_folder, replacing_all, require_writable, sha256_of, write_bytes
from .guarded import for_device, moved_up
from .records import Cost, ModelScore, Package, Parity, Plan, Tuned
from .stages import named, probe_device, reserved_device
from .terminal import bars, progress, stderr_for_child

if TYPE_CHECKING:
    from .export.calibration import Preprocess
    from .train.tune import Settings


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
    tiles, runtime = for_device(probe_device(device)[0], device, tile, target_ort)
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

    with moved_up(output, work, limit_s, memory_bytes) as (folder, names):
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
