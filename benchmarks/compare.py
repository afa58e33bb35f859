"""Run a comparison: `python -m rankfold.benchmarks.compare demo --out runs/demo`.

    runs/NAME-sSEED/      each variant's training (resumed if killed, kept if done)
    models/NAME.onnx      what was measured; beside it its plan, parity, training record, and what made it
    evaluation.json, bench.json, report.html

With several seeds the models are named NAME-sSEED. `--results FILE.jsonl` appends a row a network, once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import signal
import sys
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from pydantic import ValidationError

from ..errors import CheckFailed, DeviceError, InputError, RankfoldError
from ..files import remove_unfinished, require_writable, sha256_of, write_bytes, write_text
from ..records import (
    Bench,
    ComparisonSpec,
    Evaluation,
    Made,
    Recipe,
    ResultRow,
    Score,
    TrainRecord,
    VariantSpec,
    first_problem,
)
from ..runtime.stats import pairs_wanted
from ..stages import COMPACT, DENSE, export_run, measure_models, score_models
from ..terminal import bars, print_bench
from ..train.recipe import load_recipe

if TYPE_CHECKING:
    from multiprocessing.context import SpawnContext

    from ..train.data import Dataset

_POLL_S = 0.2


@dataclass(frozen=True)
class Job:
    """One training: a variant's recipe at one seed, and the folder it leaves its files in."""

    name: str
    recipe: Recipe
    seed: int
    folder: Path

    def is_done(self) -> bool:
        """Whether the folder holds a finished run of this very recipe and seed."""
        path = self.folder / "train.json"
        if not path.exists():
            return False
        record = TrainRecord.read(path)
        return record.recipe == self.recipe and record.seed == self.seed


@dataclass(frozen=True)
class Network:
    """One measured network: a variant at one seed."""

    name: str
    variant: VariantSpec
    job: Job


def compare(
    spec: ComparisonSpec,
    out: Path,
    *,
    data: Path | None = None,
    seeds: Sequence[int] = (0,),
    jobs: int = 2,
    threads: int = 1,
    pairs: int | None = None,
) -> tuple[Bench, Evaluation]:
    """Train, export, score and measure what `spec` lists; each step is skipped where its result is there."""
    networks = _networks(spec, out, seeds)
    _train_all(list({network.job.folder: network.job for network in networks}.values()), data, jobs)
    models = _export_all(networks, out)
    evaluation = _evaluate_all(networks, models, data, out)
    bench = _bench_all(models, out, threads, pairs)
    return bench, evaluation


def main() -> NoReturn:
    """The command line of a comparison."""
    try:
        _run(_parser().parse_args())
    except RankfoldError as error:
        print(f"rankfold: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("rankfold: interrupted; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _run(arguments: argparse.Namespace) -> None:
    from ..runtime.report import write_report

    spec = load_spec(arguments.comparison)
    for output in (arguments.out / "bench.json", arguments.results):
        if output is not None:
            require_writable(output)  # now, not after hours of training
    bench, evaluation = compare(
        spec,
        arguments.out,
        data=arguments.data,
        seeds=arguments.seeds,
        jobs=arguments.jobs,
        threads=arguments.threads,
        pairs=arguments.pairs,
    )
    if arguments.results is not None:
        append_rows(arguments.results, rows(arguments.comparison, spec, arguments.out, arguments.seeds))
    compact = _name(spec.compact, arguments.seeds[0], arguments.seeds)
    page = write_report(arguments.out, None, compact)
    print_bench(bench)
    print(page)
    print(answer(spec, bench, evaluation, compact))


def load_spec(name: str) -> ComparisonSpec:
    """A comparison from a TOML file, or one that comes along, by its name."""
    path = Path(name) if name.endswith(".toml") else Path(str(files("rankfold.benchmarks") / f"{name}.toml"))
    try:
        return ComparisonSpec.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"cannot read comparison {path}: {error.strerror}; give a name or a .toml file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"comparison {path}: not TOML: {error}") from error
    except ValidationError as error:
        raise InputError(f"comparison {path}: {first_problem(error)}") from error


def answer(spec: ComparisonSpec, bench: Bench, evaluation: Evaluation, compact: str) -> str:
    """The headline; CheckFailed where the claim does not hold."""
    ratio = next(c for c in bench.comparisons if c.variant == compact)
    test = {score.name: score.value for score in evaluation.scores if score.split == "test"}
    dense = test[bench.variants[0].name]
    text = (
        f"{compact} is {ratio.ratio:.2f}× as fast as {ratio.baseline} ({ratio.low:.2f} to {ratio.high:.2f}); "
        f"accuracy {test[compact]:.2%} against {dense:.2%}"
    )
    claim = spec.claim
    if claim is None:
        return text
    wanted = (
        (dense >= claim.dense_accuracy, f"dense accuracy of at least {claim.dense_accuracy:.0%}"),
        (dense - test[compact] <= claim.within, f"accuracy within {claim.within * 100:g} points of dense"),
        (ratio.low > claim.speedup, f"a speed-up whose interval lies above {claim.speedup:g}"),
    )
    missed = [what for holds, what in wanted if not holds]
    if missed:
        raise CheckFailed(f"{text}; expected {' and '.join(missed)}")
    return text


# --- the steps ----------------------------------------------------------------------------------------------


def _networks(spec: ComparisonSpec, out: Path, seeds: Sequence[int]) -> list[Network]:
    own = {variant.name: variant for variant in spec.variants}
    found = []
    for seed in seeds:
        for variant in spec.variants:
            trained = own[variant.trained_by or variant.name]
            assert trained.recipe is not None  # ComparisonSpec has checked it
            folder = out / "runs" / f"{trained.name}-s{seed}"
            job = Job(trained.name, load_recipe(trained.recipe, trained.changes), seed, folder)
            found.append(Network(_name(variant.name, seed, seeds), variant, job))
    return found


def _name(variant: str, seed: int, seeds: Sequence[int]) -> str:
    return variant if len(seeds) == 1 else f"{variant}-s{seed}"


def _train_all(todo: list[Job], data: Path | None, workers: int) -> None:
    """Train what is not done, `workers` at a time with one thread each: faster than one after the other."""
    todo = [job for job in todo if not job.is_done()]
    if not todo:
        return
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, _workers(workers, context) as pool, bars() as new_bar:
        queue: Queue[tuple[str, int, int, float, str]] = manager.Queue()
        running = [pool.submit(_train_one, job, data, queue) for job in todo]
        shown: dict[str, Any] = {}
        try:
            while not all(future.done() for future in running):
                _show_one(queue, shown, new_bar)
            for future in as_completed(running):
                future.result()
        except BrokenProcessPool as error:
            raise DeviceError("a training process was killed; free memory, then give the same command") from error
        finally:
            _stop(pool, todo)


def _workers(count: int, context: SpawnContext) -> ProcessPoolExecutor:
    """Ctrl-C reaches the whole process group: the workers leave it to us."""
    return ProcessPoolExecutor(count, context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))


def _stop(pool: ProcessPoolExecutor, jobs: list[Job]) -> None:
    """End what still runs (after a failure or Ctrl-C; checkpoints stay), and what it was writing."""
    workers = list((pool._processes or {}).values())  # Python 3.14 has terminate_workers(), nothing before
    pool.shutdown(cancel_futures=True, wait=False)
    for worker in workers:
        worker.terminate()
        worker.join()
    for job in jobs:
        remove_unfinished(job.folder)


def _show_one(queue: Queue[tuple[str, int, int, float, str]], shown: dict[str, Any], new_bar: Callable) -> None:
    try:
        name, step, steps, left_s, text = queue.get(timeout=_POLL_S)
    except Empty:
        return
    bar = shown.setdefault(name, new_bar(name))
    bar.show(step, steps, left_s, text)


def _train_one(job: Job, data: Path | None, queue: Queue[tuple[str, int, int, float, str]]) -> None:
    """In a worker process: train, resuming a run that was killed."""
    from ..train import checkpoint
    from ..train import data as datasets
    from ..train.trainer import CHECKPOINT, RECORD, Progress, belongs, train

    def report(name: str, progress: Progress) -> None:
        if progress.step % 10 == 0 or progress.row is not None:
            queue.put((name, progress.step, progress.steps, progress.left_s, f"loss {progress.loss:.3f}"))

    path = job.folder / CHECKPOINT
    unfinished = path.exists() and not (job.folder / RECORD).exists()
    dataset = datasets.load(job.recipe.data, data)
    name = f"{job.name}-s{job.seed}"
    train(
        job.recipe,
        dataset,
        job.folder,
        seed=job.seed,
        threads=1,
        resume=unfinished and belongs(checkpoint.load(path).facts, job.recipe, job.seed),
        on_progress=partial(report, name),
    )


def _export_all(networks: list[Network], out: Path) -> dict[str, Path]:
    """models/NAME.onnx of every network, those that take their size from another last."""
    from ..runtime.costs import count

    models: dict[str, Path] = {}
    exported: dict[tuple[str, int], Path] = {}
    for network in sorted(networks, key=lambda n: n.variant.parameters_of is not None):
        target = out / "models" / f"{network.name}.onnx"
        exported[network.variant.name, network.job.seed] = target
        models[network.name] = target
        limit = None
        if network.variant.parameters_of is not None:
            limit = count(exported[network.variant.parameters_of, network.job.seed]).parameters
        made = Made(config_hash=config_hash(network), parameters=limit)
        if _is_made(target, made, network.job.folder / "train.json"):
            continue
        export_run(
            network.job.folder,
            form=network.variant.form,
            energy=network.variant.energy,
            parameters=limit,
        )
        _copy_model(network, target)
        made.write(_made_path(target))
    return {network.name: models[network.name] for network in networks}


def _made_path(target: Path) -> Path:
    return target.with_name(f"{target.stem}.made.json")


def _is_made(target: Path, made: Made, record: Path) -> bool:
    """Whether the model is there, made of just this, and since the training's record was written."""
    path = _made_path(target)
    if not (target.exists() and path.exists()):
        return False
    return Made.read(path) == made and path.stat().st_mtime_ns > record.stat().st_mtime_ns


def _copy_model(network: Network, target: Path) -> None:
    folder, compact = network.job.folder, network.variant.write == "compact"
    _made_path(target).unlink(missing_ok=True)
    beside = ("train.json", "parity.json", "plan.json") if compact else ("train.json", "parity.json")
    for name in beside:
        write_bytes(target.with_name(f"{target.stem}.{name}"), (folder / name).read_bytes())
    write_bytes(target, (folder / (COMPACT if compact else DENSE)).read_bytes())


def _evaluate_all(networks: list[Network], models: dict[str, Path], data: Path | None, out: Path) -> Evaluation:
    """Validation and test accuracy of every model; scores of files that have not changed are kept."""
    from ..train import data as datasets

    path = out / "evaluation.json"
    known = Evaluation.read(path).scores if path.exists() else []
    have = {(score.name, score.model_sha256, score.split): score for score in known}
    scores: list[Score] = []
    splits: tuple[Literal["validation", "test"], ...] = ("validation", "test")
    loaded: dict[str, Dataset] = {}
    for network in networks:
        model, spec = models[network.name], network.job.recipe.data
        for split in splits:
            kept = have.get((network.name, sha256_of(model), split))
            if kept is not None:
                scores.append(kept)
                continue
            key = spec.model_dump_json()
            dataset = loaded[key] = loaded.get(key) or datasets.load(spec, data)
            scores += score_models({network.name: model}, dataset, split, network.job.seed)
    evaluation = Evaluation(scores=scores)
    evaluation.write(path)
    return evaluation


def _bench_all(models: dict[str, Path], out: Path, threads: int, pairs: int | None) -> Bench:
    """One run for all of them; a bench.json of these very files, threads and pairs is kept."""
    path = out / "bench.json"
    pairs = pairs or pairs_wanted(threads)
    wanted = [(name, sha256_of(model)) for name, model in models.items()]
    if path.exists():
        bench = Bench.read(path)
        options = (bench.context.threads, bench.comparisons[0].pairs)
        if [(v.name, v.sha256) for v in bench.variants] == wanted and options == (threads, pairs):
            return bench
    return measure_models(list(models.values()), output=path, threads=threads, pairs=pairs)


# --- results ------------------------------------------------------------------------------------------------


def rows(comparison: str, spec: ComparisonSpec, out: Path, seeds: Sequence[int]) -> list[ResultRow]:
    """One row a network, from the records in a comparison folder."""
    bench, evaluation = Bench.read(out / "bench.json"), Evaluation.read(out / "evaluation.json")
    scores = {(score.name, score.split): score for score in evaluation.scores}
    ratios = {ratio.variant: ratio for ratio in bench.comparisons}
    measured = {variant.name: variant for variant in bench.variants}
    made = []
    for network in _networks(spec, out, seeds):
        test, validation = scores[network.name, "test"], scores.get((network.name, "validation"))
        variant, ratio = measured[network.name], ratios.get(network.name)
        made.append(
            ResultRow(
                comparison=comparison,
                variant=network.variant.name,
                config_hash=config_hash(network),
                seed=network.job.seed,
                validation_accuracy=validation.value if validation else None,
                test_accuracy=test.value,
                test_low=test.low,
                test_high=test.high,
                test_n=test.n,
                parameters=variant.parameters,
                macs=variant.macs,
                size_bytes=variant.size_bytes,
                speedup=ratio.ratio if ratio else None,
                speedup_low=ratio.low if ratio else None,
                speedup_high=ratio.high if ratio else None,
                cpu_model=bench.context.facts.cpu_model,
                onnxruntime_version=bench.context.facts.onnxruntime_version,
                threads=bench.context.threads,
            )
        )
    return made


def config_hash(network: Network) -> str:
    """Twelve hex digits over what decides a network: recipe (without defaults) and export settings."""
    recipe = network.job.recipe.model_dump(mode="json", exclude_defaults=True)
    export = network.variant.model_dump(mode="json", include={"write", "form", "energy", "parameters_of"})
    text = json.dumps([recipe, export], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def append_rows(path: Path, new: Sequence[ResultRow]) -> None:
    """Append rows to a JSON-lines file; a row of the same configuration and seed is replaced."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        old = [ResultRow.model_validate_json(line) for line in lines]
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}; correct it or name another file") from error
    merged = {(row.comparison, row.config_hash, row.seed): row for row in [*old, *new]}
    write_text(path, "".join(row.model_dump_json() + "\n" for row in merged.values()))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as everywhere, without the usage before it."""
        raise InputError(f"{message}; see --help")


def _whole(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} up, found {text!r}")
        return int(text)

    return number


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m rankfold.benchmarks.compare",
        description="Train networks equally long, measure them together, report, and check the claim.",
        epilog="Example: python -m rankfold.benchmarks.compare demo --out runs/demo",
    )
    parser.add_argument("comparison", help="a .toml file, or the name of one that comes along")
    parser.add_argument("--out", type=Path, required=True, help="comparison folder")
    parser.add_argument("--data", type=Path, help="npz file, for recipes that need one")
    parser.add_argument("--seeds", type=_whole(0), nargs="+", default=[0])
    parser.add_argument("--jobs", type=_whole(1), default=2, help="trainings at a time, one thread each (default: 2)")
    parser.add_argument("--threads", type=_whole(1), default=1, help="threads of the measured networks (default: 1)")
    parser.add_argument("--pairs", type=_whole(2), help="launch pairs a variant (default: 8 at one thread, 24 at more)")
    parser.add_argument("--results", type=Path, help="append a row a network to this .jsonl")
    return parser


if __name__ == "__main__":
    main()
