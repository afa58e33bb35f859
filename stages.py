"""The stages of a run as the commands and the benchmarks call them: each reads files and leaves files.

run folder: train.json + checkpoint.safetensors → dense.onnx, compact.onnx, plan.json, parity.json
→ evaluation.json, bench.json → report.html
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import InputError
from .files import replacing_all, require_writable, sha256_of, write_bytes
from .records import (
    Bench,
    Card,
    Compressed,
    Evaluation,
    Facts,
    ModelScore,
    Parity,
    Plan,
    Score,
    TrainRecord,
    Tuned,
    Weather,
)
from .terminal import Bar, bars, progress

if TYPE_CHECKING:
    from .export.calibration import Preprocess
    from .export.compress import Wish
    from .runtime.turns import Options
    from .train.data import Dataset
    from .train.tune import Settings

Split = Literal["validation", "test"]
DENSE, COMPACT = "dense.onnx", "compact.onnx"


def export_run(
    run_dir: Path,
    *,
    form: str | None = None,
    energy: float | None = None,
    tile: int | None = None,
    parameters: int | None = None,
) -> Plan:
    """Write a finished run's dense.onnx and compact.onnx, parity.json and plan.json: all of them, or none.

    `form` and `energy` default to the recipe's own, `tile` to this machine's; with `parameters` the energy is
    the largest, one for all layers, whose network has at most that many.
    """
    import torch

    from .export.from_torch import to_onnx
    from .export.shrink import prepare_dense, shrink
    from .train import checkpoint
    from .train.models import build
    from .train.trainer import CHECKPOINT, RECORD

    record = TrainRecord.read(run_dir / RECORD)
    spec = record.recipe.regularizer
    model = build(record.recipe.model, record.input_shape[0], record.classes)
    stored = checkpoint.load(run_dir / CHECKPOINT)
    checkpoint.restore(stored, model)
    for name, tensor in stored.model_state().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{run_dir / CHECKPOINT}: '{name}' holds NaN or infinity; train again")
    with replacing_all(run_dir, (DENSE, COMPACT, "parity.json", "plan.json")) as folder:
        exporter, checks = to_onnx(model, torch.zeros(1, *record.input_shape), folder / DENSE)
        prepared = prepare_dense(folder / DENSE)
        plan, parity = shrink(
            folder / DENSE,
            folder / COMPACT,
            form=form or (spec.form if spec else "channel"),
            energy=energy if energy is not None else (spec.energy if spec else 1.0),
            tile=tile if tile is not None else probe_device("host")[0].tile,
            parameters=parameters,
        )
        Parity(exporter=exporter, checks=[*checks, *prepared.checks, *parity.checks]).write(folder / "parity.json")
        plan.write(folder / "plan.json")
    return plan


def evaluate_run(run_dir: Path, data: Path | None, split: Split = "test") -> Evaluation:
    """Score a run's dense.onnx and compact.onnx on a split of its recipe's data: evaluation.json."""
    from .train import data as datasets
    from .train.trainer import RECORD

    record = TrainRecord.read(run_dir / RECORD)
    models = {"dense": run_dir / DENSE, "compact": run_dir / COMPACT}
    scores = score_models(models, datasets.load(record.recipe.data, data), split, record.seed)
    evaluation = Evaluation(scores=scores)
    evaluation.write(run_dir / "evaluation.json")
    return evaluation


def score_models(models: Mapping[str, Path], dataset: Dataset, split: Split, seed: int) -> list[Score]:
    """Top-1 accuracy by ONNX Runtime of each model on a split; `seed` is the one they were trained with."""
    from .export.evaluate import score

    part = {"validation": dataset.validation, "test": dataset.test}[split]
    inputs = dataset.inputs(part.images)
    return [
        score(path, inputs, part.labels, data=dataset.name, split=split, seed=seed, name=name)
        for name, path in models.items()
    ]


def measure_models(models: Sequence[Path], *, output: Path, device: str = "host", **asked: Any) -> Bench:
    """Measure ONNX files, the first being the baseline, on a device, and write the record to `output`.

    `asked` are fields of `runtime.turns.Options`.
    """
    from .devices import card
    from .runtime.turns import Options

    found, sources = card.find(device), named(models)
    require_writable(output)  # now, not after minutes of measuring
    with bars() as new_bar:
        return _measured(sources, found, Options(**asked), new_bar, "bench", output)


def sweep_models(
    models: Sequence[Path], *, output: Path, sweep: Sequence[str], device: str = "host", **asked: Any
) -> Iterator[tuple[str, Path, Bench]]:
    """Measure under one setting after the other: `bench.json` → `bench.threads-1.json` and so on."""
    from .devices import card
    from .runtime.sweep import settings
    from .runtime.turns import Options

    found, sources = card.find(device), named(models)
    require_writable(output)
    planned = settings(sweep, Options(**asked), probe_device(device)[0])
    with bars() as new_bar:
        for name, options in planned:
            path = output.with_name(f"{output.stem}.{name}{output.suffix}")
            yield name, path, _measured(sources, found, options, new_bar, name, path)


def _measured(
    sources: Sequence[tuple[str, Path]],
    found: Card,
    options: Options,
    new_bar: Callable[[str], Bar],
    name: str,
    path: Path,
) -> Bench:
    """The record is written when the pairs are done, and again with what was asked for beside them."""
    from .devices.local import LocalTransport
    from .runtime.measure import Progress, measure, under_load

    def shown(what: str) -> Callable[[Progress], None]:
        bar = new_bar(what)
        return lambda now: bar.show(now.done, now.total, now.left_s, now.what)

    bench = measure(sources, LocalTransport(), found, options, shown(name))
    bench.write(path)
    if options.loads:
        bench = under_load(bench, sources, LocalTransport(), options, shown(f"{name}, under load"))
        bench.write(path)
    return bench


def named(models: Sequence[Path]) -> list[tuple[str, Path]]:
    """Models with names: a run folder stands for its dense.onnx and compact.onnx, a file is named by its stem."""
    paths: list[Path] = []
    for path in models:
        paths += [path / DENSE, path / COMPACT] if path.is_dir() else [path]
    stems = [path.stem for path in paths]
    clash = next((stem for stem in stems if stems.count(stem) > 1), None)
    names = [str(path) for path in paths] if clash else stems
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise InputError(f"no model {missing}; give .onnx files, or a run folder that `rankfold export` finished")
    return list(zip(names, paths, strict=True))


def probe_device(name: str) -> tuple[Facts, Weather]:
    """What a device turns out to be, and its present weather."""
    from .devices import card, probe
    from .devices.local import LocalTransport

    found = card.find(name)
    with LocalTransport().launch() as process:
        facts = probe.facts(process)
        probe.check_card(found, facts)
        return facts, probe.weather(process)


# --- any ONNX file, each in a child with bounds on memory and time --------------------------------------------


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
        from .devices.local import LocalTransport
        from .export import compress
        from .runtime.inputs import given
        from .runtime.latency import stopwatch
        from .runtime.turns import Options

        options = Options(threads=threads)

        with bars() as new_bar:
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
                watch=None if wish.time is None else stopwatch(LocalTransport(), facts, options, table),
                device=device,
            )
            return job.into(folder, source, output.name)

    with _moved_up(output, work, limit_s, memory_bytes) as (folder, names):
        done = Compressed.read(folder / names.pop(0))
    return done


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
    device: str = "host",
    tile: str = "auto",
    target_ort: str | None = None,
    shapes: Sequence[str] = (),
    inputs: Path | None = None,
    limit_s: float,
    memory_bytes: int | None = None,
) -> Parity:
    """Fold and quantise a file for a device's instructions: `output`, .plan.json and .parity.json, or nothing."""
    require_writable(output)
    facts = probe_device(device)[0]
    tiles, runtime = _for_device(facts, device, tile, target_ort)

    def work(folder: Path) -> list[str]:
        from .export.quantize import needs_reduced_range, quantize_into
        from .runtime.inputs import given

        return quantize_into(
            folder,
            source,
            output.name,
            data=data,
            most=most,
            how=how,
            reduce_range=needs_reduced_range(facts.isa),
            tile=tiles,
            target_ort=runtime,
            given=given(shapes, inputs),
        )

    with _moved_up(output, work, limit_s, memory_bytes) as (folder, names):
        return Parity.read(folder / names[0])


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
    limit_s: float,
    memory_bytes: int | None = None,
) -> ModelScore:
    """Score one ONNX file by a command, by labels, or by its original where there are none."""
    if (metric is None) == (data is None):
        raise InputError("give --data, or --metric with a command, to say what a good model is")
    if output is not None:
        require_writable(output)
    if metric is not None:
        from .export.metric import by_command

        score = by_command(metric, _existing(source), limit_s)
    else:
        score = _score_on(source, data, reference, how, limit_s, memory_bytes)
    if output is not None:
        score.write(output)
    return score


def _score_on(
    source: Path, data: Path | None, reference: Path | None, how: Preprocess, limit_s: float, memory_bytes: int | None
) -> ModelScore:
    from .export.guard import guarded

    def work() -> str:
        from .export.metric import on_data

        assert data is not None, "the caller checked it"
        return on_data(source, data, reference, how).model_dump_json()

    return ModelScore.model_validate_json(guarded(work, memory_bytes=memory_bytes, limit_s=limit_s))


def _existing(source: Path) -> Path:
    if not source.is_file():
        raise InputError(f"no model {source}; give an .onnx file, or a run folder that `rankfold export` finished")
    return source


def _whole(option: str, text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise InputError(f"{option} {text[:40]!r}: expected auto or a whole number from 1 to 1024")
    return int(text)
