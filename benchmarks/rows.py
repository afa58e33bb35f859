"""Rows of docs/results/*.jsonl: one measured network each; what has its row is not done again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from ..errors import InputError
from ..files import write_text
from ..records import Bench, Evaluation, Record, ResultRow, first_problem
from .networks import Network, config_hash

Row = TypeVar("Row", bound=Record)


def rows_of(comparison: str, networks: Sequence[Network], out: Path) -> list[ResultRow]:
    """One row a network, from the records in a comparison folder."""
    bench, evaluation = Bench.read(out / "bench.json"), Evaluation.read(out / "evaluation.json")
    scores = {(score.name, score.split): score for score in evaluation.scores}
    ratios = {ratio.variant: ratio for ratio in bench.comparisons}
    measured = {variant.name: variant for variant in bench.variants}
    made = []
    for network in networks:
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


def has_rows(path: Path, comparison: str, networks: Sequence[Network]) -> bool:
    """Whether every one of the networks was measured before."""
    known = {_key(row) for row in read(path, ResultRow)}
    return all((comparison, config_hash(network), network.job.seed) in known for network in networks)


def append_rows(path: Path, new: Sequence[ResultRow]) -> None:
    """Append rows to a JSON-lines file; a row of the same configuration and seed is replaced."""
    merged = {_key(row): row for row in [*read(path, ResultRow), *new]}
    write(path, merged.values())


def _key(row: ResultRow) -> tuple[str, str, int]:
    return row.comparison, row.config_hash, row.seed


def read(path: Path, kind: type[Row]) -> list[Row]:
    """The rows of a file, none if it is not there."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [kind.model_validate_json(line) for line in lines]
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}; correct it or name another file") from error


def write(path: Path, rows: Iterable[Record]) -> None:
    """All rows of a file, a line each."""
    write_text(path, "".join(row.model_dump_json() + "\n" for row in rows))
