"""The stages of a run as the commands and the benchmarks call them: each reads files and leaves files.

run folder: train.json + checkpoint.safetensors → dense.onnx, compact.onnx, plan.json, parity.json
(and both as .int8.onnx) → evaluation.json, bench.json → report.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import DeviceError, InputError
from .files import replacing_all, require_writable, sha256_of
from .records import (
    Bench,
    Card,
    Evaluation,
    Facts,
    LayerTime,
    Parity,
    Plan,
    Score,
    TrainRecord,
    Weather,
)
from .terminal import Shown, bars, progress

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from .devices.transport import Transport
    from .export.calibration import Samples
    from .runtime.serving import Models
    from .runtime.turns import Options
    from .train.checkpoint import Checkpoint
    from .train.data import Dataset

Split = Literal["validation", "test"]
DENSE, COMPACT = "dense.onnx", "compact.onnx"
INT8 = ("dense.int8.onnx", "compact.int8.onnx")  # where a run was exported with --int8
_INT8_RECORDS = tuple(name.replace(".onnx", ending) for name in INT8 for ending in (".parity.json", ".plan.json"))
EXPORTED = (DENSE, COMPACT, "parity.json", "plan.json")
_CALIBRATION = 512  # training images that the ranges of int8 are read from, and judged on


def export_run(
    run_dir: Path,
    *,
    form: str | None = None,
    energy: float | None = None,
    tile: int | None = None,
    parameters: int | None = None,
    int8: bool = False,
    data: Path | None = None,
) -> Plan:
    """Write a finished run's dense.onnx and compact.onnx, parity.json and plan.json: all of them, or none.

    With `int8` both lie there quantised too, by images of the run's own training data (`data` where it is not where
    the recipe says); those of an earlier export go if not.

    `form` and `energy` default to the recipe's own, `tile` to this machine's; with `parameters` the energy is
    the largest, one for all layers, whose network has at most that many. Where a plan was trained, it decides, and
    dense.onnx is the network that it came from.
    """
    import torch

    from .export.from_torch import to_onnx
    from .export.shrink import prepare_dense, shrink
    from .train import checkpoint
    from .train.models import build
    from .train.trainer import CHECKPOINT, RECORD

    record = TrainRecord.read(run_dir / RECORD)
    spec = record.recipe.regularizer
    model = build(record.recipe.model, record.input_shape[0], record.classes, load=False)
    stored = checkpoint.load(run_dir / CHECKPOINT)
    for name, tensor in stored.model_state().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{run_dir / CHECKPOINT}: '{name}' holds NaN or infinity; train again")
    if record.start is not None:
        if not form is energy is parameters is None:
            raise InputError(f"{run_dir}: its plan decides forms and ranks; leave out --form, --energy, --parameters")
        with _exported(run_dir, record, data, int8=int8) as folder:
            return _export_planned(folder, record, stored, model)
    checkpoint.restore(stored, model)
    with _exported(run_dir, record, data, int8=int8) as folder:
        exporter, checks = to_onnx(model, torch.zeros(1, *record.input_shape), folder / DENSE)
        prepared = prepare_dense(folder / DENSE)
        plan, parity = shrink(
            folder / DENSE,
            folder / COMPACT,
            form=form or (spec.form if spec else "channel"),
            energy=energy if energy is not None else (spec.energy if spec else 1.0),
            tile=tile if tile is not None else probe_device("host")[0].tile,
            parameters=parameters,
            table=table_of(stored),
        )
        Parity(exporter=exporter, checks=[*checks, *prepared.checks, *parity.checks]).write(folder / "parity.json")
        plan.write(folder / "plan.json")
    return plan


def table_of(stored: Checkpoint) -> list[LayerTime] | None:
    """The rows of the latency table that a run was trained with."""
    rows = (stored.facts.get("regularizer") or {}).get("table")
    return rows and [LayerTime.model_validate(row) for row in rows]


@contextmanager
def _exported(run_dir: Path, record: TrainRecord, data: Path | None, *, int8: bool) -> Iterator[Path]:
    """A scratch folder for what export writes; with `int8` what lies there at the end is quantised too."""
    samples_for = _training_images(record, data) if int8 else None
    with replacing_all(run_dir, (*(_INT8_RECORDS + INT8 if int8 else ()), *EXPORTED)) as folder:
        yield folder
        if samples_for is not None:
            _quantize_both(folder, samples_for)
    for name in () if int8 else (*INT8, *_INT8_RECORDS):
        (run_dir / name).unlink(missing_ok=True)


def _quantize_both(folder: Path, samples_for: Callable[[onnx.ModelProto], Samples]) -> None:
    from .export.quantize import Int8, needs_reduced_range, quantize_into

    facts = probe_device("host")[0]
    with bars() as new_bar:
        for source, name in zip((DENSE, COMPACT), INT8, strict=True):
            how, report = Int8(needs_reduced_range(facts.isa)), progress(new_bar)
            quantize_into(folder, folder / source, name, samples_for=samples_for, int8=how, report=report)


def _training_images(record: TrainRecord, path: Path | None) -> Callable[[onnx.ModelProto], Samples]:
    """Images of the training part, evenly spread, as the network sees them: none of them was held out."""
    import numpy as np

    from .export.calibration import Samples
    from .runtime.inputs import graph_inputs
    from .train import data as datasets

    data = datasets.load(record.recipe.data, path)
    count = min(len(data.train), _CALIBRATION)
    chosen = np.linspace(0, len(data.train) - 1, count).astype(np.int64)
    images, labels = data.inputs(data.train.images[chosen]), data.train.labels[chosen]

    def samples_for(proto: onnx.ModelProto) -> Samples:
        name = graph_inputs(proto)[0].name
        return Samples(f"{data.name}, training", count, labels, lambda start, stop: {name: images[start:stop]})

    return samples_for


def _export_planned(folder: Path, record: TrainRecord, stored: Checkpoint, model: nn.Module) -> Plan:
    import torch

    from .export.from_torch import to_onnx
    from .export.shrink import carry_out, prepare_dense
    from .export.wish import unmeasured
    from .train.planned import modules_of

    dense, small, plan = modules_of(stored, model)
    exporter, checks = to_onnx(dense, torch.zeros(1, *record.input_shape), folder / DENSE)
    checks += prepare_dense(folder / DENSE).checks
    checks += to_onnx(small, torch.zeros(1, *record.input_shape), folder / "trained.onnx")[1]
    plan = unmeasured(plan).model_copy(update={"source_sha256": sha256_of(folder / DENSE)})
    checks += carry_out(folder / "trained.onnx", folder / DENSE, folder / COMPACT, plan).checks
    Parity(exporter=exporter, checks=checks).write(folder / "parity.json")
    plan.write(folder / "plan.json")
    return plan


def evaluate_run(run_dir: Path, data: Path | None, split: Split = "test") -> Evaluation:
    """Score a run's networks, as float and, where they are there, as int8, on a split of its data: evaluation.json."""
    from .train import data as datasets
    from .train.trainer import RECORD

    record = TrainRecord.read(run_dir / RECORD)
    models = {path.stem: path for path in exported_files(run_dir)}
    scores = score_models(models, datasets.load(record.recipe.data, data), split, record.seed)
    evaluation = Evaluation(scores=scores)
    evaluation.write(run_dir / "evaluation.json")
    return evaluation


def exported_files(run_dir: Path) -> list[Path]:
    """A run's dense.onnx and compact.onnx, and those in int8 where they were exported."""
    return [run_dir / DENSE, run_dir / COMPACT, *(path for name in INT8 if (path := run_dir / name).is_file())]


def score_models(models: Mapping[str, Path], dataset: Dataset, split: Split, seed: int) -> list[Score]:
    """Top-1 accuracy by ONNX Runtime of each model on a split; `seed` is the one they were trained with."""
    from .export.evaluate import score
    from .train.data import Inputs

    part = {"validation": dataset.validation, "test": dataset.test}[split]
    inputs = Inputs(dataset, part)
    return [
        score(path, inputs, part.labels, data=dataset.name, split=split, seed=seed, name=name)
        for name, path in models.items()
    ]


def measure_models(
    models: Sequence[Path],
    *,
    output: Path,
    device: str = "host",
    governor: str | None = None,
    resume: bool = False,
    **asked: Any,
) -> Bench:
    """Measure ONNX files, the first being the baseline, on a device, and write the record to `output`.

    The device has that frequency governor meanwhile. Pairs that are done are kept beside the record until it is whole;
    `resume` goes on after them. `asked` are fields of `runtime.turns.Options`.
    """
    from .devices import card
    from .runtime.turns import Options

    found, sources = card.find(device), named(models)
    require_writable(output)  # now, not after minutes of measuring
    with bars() as new_bar, reserved_device(found, new_bar, governor) as transport:
        return measured(sources, transport, found, Options(**asked), new_bar, "bench", output, resume=resume)


def bench_once(
    models: Mapping[str, Path], output: Path, *, device: str = "host", threads: int = 1, pairs: int | None = None
) -> Bench:
    """One bench of models by name, the first being the baseline; one of these very files, as wanted, is kept."""
    from .runtime.stats import pairs_wanted

    pairs = pairs or pairs_wanted(threads)
    if output.exists():
        bench = Bench.read(output)
        context = bench.context
        measured = [(variant.name, variant.sha256) for variant in bench.variants]
        how = (context.device, context.threads, bench.comparisons[0].pairs if bench.comparisons else None)
        if measured == [(name, sha256_of(path)) for name, path in models.items()] and how == (device, threads, pairs):
            return bench
    return measure_models(list(models.values()), output=output, device=device, threads=threads, pairs=pairs)


def sweep_models(
    models: Sequence[Path],
    *,
    output: Path,
    sweep: Sequence[str],
    device: str = "host",
    governor: str | None = None,
    **asked: Any,
) -> Iterator[tuple[str, Path, Bench]]:
    """Measure under one setting after the other: `bench.json` → `bench.threads-1.json` and so on."""
    from .devices import card
    from .runtime.sweep import settings
    from .runtime.turns import Options

    found, sources = card.find(device), named(models)
    if found.is_emulated:
        raise InputError(f"--sweep compares times, and device '{device}' is emulated; leave it out")
    require_writable(output)
    planned = settings(sweep, Options(**asked), probe_device(device)[0])
    with bars() as new_bar, reserved_device(found, new_bar, governor) as transport:
        for name, options in planned:
            path = output.with_name(f"{output.stem}.{name}{output.suffix}")
            yield name, path, measured(sources, transport, found, options, new_bar, name, path)


@contextmanager
def reserved_device(card: Card, new_bar: Callable[[str], Shown], governor: str | None = None) -> Iterator[Transport]:
    """The way to a device for measuring; while somebody else measures there, a bar says who."""
    from .devices.reach import reserved

    waiting: list[Shown] = []

    def tell(why: str) -> None:
        waiting.append(waiting[0] if waiting else new_bar(card.name))
        waiting[0].show(0, 1, None, why)

    with reserved(card, tell, governor) as transport:
        for bar in waiting[:1]:
            bar.show(1, 1, None, "")
        yield transport


def measured(
    sources: Models,
    transport: Transport,
    found: Card,
    options: Options,
    new_bar: Callable[[str], Shown],
    name: str,
    path: Path,
    resume: bool = False,
) -> Bench:
    """Measure; the record is written when the pairs are done, and again with what was asked for beside them.

    An emulated device is not timed: the record says how far outputs there agree with those here; CheckFailed, after it
    was written, where they do not.
    """
    from .runtime.agreement import agree, judge
    from .runtime.kept import Kept
    from .runtime.measure import Progress, measure, under_load

    def shown(what: str) -> Callable[[Progress], None]:
        bar = new_bar(what)
        return lambda now: bar.show(now.done, now.total, now.left_s, now.what)

    if found.is_emulated:
        if resume:
            raise InputError(f"--resume: device '{found.name}' is emulated and has no pairs; leave it out")
        bench = agree(sources, transport, found, options, progress(new_bar))
        bench.write(path)
        judge(bench)
        return bench
    kept = Kept(path.with_name(f"{path.name}.part"), resume=resume)
    try:
        bench = measure(sources, transport, found, options, shown(name), kept=kept)
    except DeviceError as error:
        if not kept.done:
            raise
        words = f"{len(kept.done)} pairs are kept in {kept.path}; go on after them with the same options and"
        raise type(error)(f"{error}; {words} --device {found.name} -o {path} --resume") from error
    bench.write(path)
    kept.forget()
    if options.loads:
        bench = under_load(bench, sources, transport, options, shown(f"{name}, under load"))
        bench.write(path)
    return bench


def named(models: Sequence[Path]) -> list[tuple[str, Path]]:
    """Models with names: a run folder stands for what it was exported to, a file is named by its stem."""
    paths: list[Path] = []
    for path in models:
        paths += exported_files(path) if path.is_dir() else [path]
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
    from .devices.reach import transport_of

    found = card.find(name)
    with transport_of(found).launch() as process:
        facts = probe.facts(process)
        probe.check_card(found, facts)
        return facts, probe.weather(process)
