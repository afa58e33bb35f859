"""Run a comparison: `python -m rankfold.benchmarks.compare demo --out runs/demo`.

    runs/NAME/            each variant's training (resumed if killed, kept if done)
    models/NAME.onnx      what was measured; beside it its plan, parity, training record, and what made it
    evaluation.json, bench.json, report.html

With several seeds each has such a folder of its own, seed-N. `--results FILE.jsonl` appends a row a network as
soon as its seed is measured; a seed whose rows are all there is skipped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from ..errors import CheckFailed, InputError, RankfoldError, complaint, system_complaint
from ..files import require_writable, sha256_of, write_bytes
from ..records import Bench, ComparisonSpec, Evaluation, Made, Score
from ..stages import COMPACT, DENSE, bench_once, export_run, score_models
from ..tables import print_bench
from .networks import Network, config_hash, load_spec, networks_of
from .rows import append_rows, has_rows, rows_of
from .training import train_all

if TYPE_CHECKING:
    from ..train.data import Dataset


def compare(
    networks: list[Network],
    out: Path,
    *,
    data: Path | None = None,
    threads: int = 1,
    pairs: int | None = None,
) -> tuple[Bench, Evaluation]:
    """Export, score and measure trained networks of one seed; each step is skipped where its result is there."""
    models = _export_all(networks, out)
    evaluation = _evaluate_all(networks, models, data, out)
    bench = bench_once(models, out / "bench.json", threads=threads, pairs=pairs)
    return bench, evaluation


def main() -> NoReturn:
    """The command line of a comparison."""
    try:
        _run(_parser().parse_args())
    except RankfoldError as error:
        print(complaint(str(error)), file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(system_complaint(error), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(complaint("interrupted; the same command goes on where it was"), file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _run(arguments: argparse.Namespace) -> None:
    spec = load_spec(arguments.comparison)
    several = len(arguments.seeds) > 1
    folders = {arguments.out / f"seed-{seed}" if several else arguments.out: seed for seed in arguments.seeds}
    for output in (*(folder / "bench.json" for folder in folders), arguments.results):
        if output is not None:
            require_writable(output)  # now, not after hours of training
    todo = {folder: networks_of(spec, folder, seed) for folder, seed in folders.items()}
    for folder, networks in list(todo.items()):
        if arguments.results is not None and has_rows(arguments.results, arguments.comparison, networks):
            print(f"{arguments.results} has every row of seed {folders[folder]}; delete them to measure again")
            del todo[folder]
    jobs = {network.job.folder: network.job for networks in todo.values() for network in networks}
    train_all(list(jobs.values()), arguments.data, arguments.jobs)
    for folder, networks in todo.items():
        _measure_and_report(spec, networks, folder, arguments)


def _measure_and_report(
    spec: ComparisonSpec, networks: list[Network], out: Path, arguments: argparse.Namespace
) -> None:
    from ..runtime.report import write_report

    bench, evaluation = compare(networks, out, data=arguments.data, threads=arguments.threads, pairs=arguments.pairs)
    if arguments.results is not None:
        append_rows(arguments.results, rows_of(arguments.comparison, networks, out))
    page = write_report(out, None, spec.compact)
    print_bench(bench)
    print(page)
    print(answer(spec, bench, evaluation))


def answer(spec: ComparisonSpec, bench: Bench, evaluation: Evaluation) -> str:
    """The headline; CheckFailed where the claim does not hold."""
    compact = spec.compact
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


def _export_all(networks: list[Network], out: Path) -> dict[str, Path]:
    """models/NAME.onnx of every network, those that take their size from another last."""
    from ..runtime.costs import count

    models: dict[str, Path] = {}
    for network in sorted(networks, key=lambda n: n.variant.parameters_of is not None):
        target = out / "models" / f"{network.name}.onnx"
        models[network.name] = target
        limit = None
        if network.variant.parameters_of is not None:
            limit = count(models[network.variant.parameters_of]).parameters
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
    if scores != known:
        evaluation.write(path)
    return evaluation


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
