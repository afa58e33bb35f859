"""Reads what a folder holds and joins it by variant: one `Report` that all writers share.

Scores join by the model's sha256 and by nothing else: a score of another file leaves a variant "not measured"
and adds a caution. Plans, parities and training records join by the model's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...records import (
    Agreement,
    Bench,
    Caution,
    Comparison,
    Evaluation,
    Explanation,
    Frontier,
    Parity,
    Plan,
    Record,
    Score,
    Sweep,
    TrainRecord,
    Variant,
)
from ..stats import quantile
from .commands import reproduce

_PLAN = ".plan.json"
Role = Literal["baseline", "headline", "other"]
Split = tuple[str, str, str]
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Side:
    """What lies beside a model: the plan that made it, its parity, its training, what else one might have chosen."""

    plan: Plan | None = None
    parity: Parity | None = None
    train: TrainRecord | None = None
    frontier: Frontier | None = None
    explanation: Explanation | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """One variant with everything known about it; `launches_s` holds the samples of each of its launches."""

    variant: Variant
    role: Role
    launches_s: list[NDArray[np.float64]]
    comparison: Comparison | None
    score: Score | None
    side: Side
    agreement: Agreement | None = None

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.variant.name

    @property
    def samples_s(self) -> NDArray[np.float64]:
        """All samples of all launches, in seconds."""
        return np.concatenate(self.launches_s) if self.launches_s else np.empty(0)

    @property
    def first_run_s(self) -> float | None:
        """Median over launches of the first run."""
        return _median(launch.first_run_s for launch in self.variant.launches)

    @property
    def session_creation_s(self) -> float | None:
        """Median over launches of the time to create the session."""
        return _median(launch.session_creation_s for launch in self.variant.launches)

    @property
    def peak_rss_bytes(self) -> float | None:
        """Median over launches of the peak resident memory; None if no launch says."""
        return _median(launch.peak_rss_bytes for launch in self.variant.launches)

    def quantile_s(self, q: float) -> float | None:
        """The q-quantile of the samples in seconds, or None with too few samples beyond it."""
        return quantile(self.samples_s.tolist(), q)


@dataclass(frozen=True)
class Report:
    """All that the page says. `split` is (data, split, metric) of the scores shown; None without scores."""

    bench: Bench
    rows: list[Row]
    split: Split | None
    cautions: list[Caution]
    commands: list[str]
    recipe: str | None
    sweep: Sweep | None = None

    @property
    def is_emulated(self) -> bool:
        """Whether there are no times, since nothing ran on a board."""
        return self.bench.context.facts.emulated

    @property
    def baseline(self) -> Row:
        """The variant that all ratios refer to."""
        return self.rows[0]

    @property
    def headline(self) -> Row:
        """The variant that the answer is about; the baseline itself where there is no other."""
        return next((row for row in self.rows if row.role == "headline"), self.rows[0])

    def speed(self, row: Row) -> float | None:
        """Baseline time / variant time by comparison; 1 for the baseline, None where not compared."""
        if row is self.baseline:
            return 1.0
        return row.comparison.ratio if row.comparison else None

    def mac_reduction(self, row: Row) -> float | None:
        """MACs of the baseline / MACs of the variant, None where either is unknown or 0."""
        dense, small = self.baseline.variant.macs, row.variant.macs
        return dense / small if dense and small else None


def assemble(path: Path, headline: str | None = None) -> Report:
    """Read `path` (a bench.json) and the records beside it, and join them; raises InputError."""
    folder, bench = path.parent, Bench.read(path)
    _refuse_unusable(path, bench)
    scores = _optional(Evaluation, folder / "evaluation.json")
    split = _shared_split(scores.scores if scores else [], bench.variants)
    rows = [_row(bench, variant, scores, split) for variant in bench.variants]
    rows = _with_sides(rows, folder)
    rows = _with_headline(rows, headline)
    training = next((row.side.train for row in sorted(rows, key=_importance) if row.side.train), None)
    own = [*_score_cautions(scores, rows), *_parity_cautions(rows)]
    return Report(
        bench=bench,
        rows=rows,
        split=split,
        cautions=[*bench.cautions, *own],
        commands=reproduce(path, bench, training),
        recipe=_recipe(folder / "recipe.toml", training),
        sweep=_optional(Sweep, folder / "sweep.json"),
    )


def _refuse_unusable(path: Path, bench: Bench) -> None:
    names = [variant.name for variant in bench.variants]
    if not names:
        raise InputError(f"{path}: expected at least one variant, found none; run rankfold bench again")
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise InputError(f"{path}: variant {twice!r} appears twice; give each model a name of its own")
    if bench.context.facts.emulated and bench.pairs:
        raise InputError(f"{path}: measured under an emulator, which yields no latency; measure on the board")


def _row(bench: Bench, variant: Variant, scores: Evaluation | None, split: Split | None) -> Row:
    baseline = bench.variants[0].name
    compared = (c for c in bench.comparisons if (c.baseline, c.variant) == (baseline, variant.name))
    scored = (s for s in (scores.scores if scores else []) if s.model_sha256 == variant.sha256)
    return Row(
        variant=variant,
        role="baseline" if variant.name == baseline else "other",
        launches_s=launch_samples(bench, variant.name),
        comparison=None if variant.name == baseline else next(compared, None),
        score=next((score for score in scored if _split_of(score) == split), None),
        side=Side(),
        agreement=next((one for one in bench.agreements if one.variant == variant.name), None),
    )


def launch_samples(bench: Bench, name: str) -> list[NDArray[np.float64]]:
    """The samples of a variant in seconds, one array for each launch pair that it took part in."""
    launches = ([s for b in pair.blocks if b.variant == name for s in b.samples_s] for pair in bench.pairs)
    return [np.asarray(samples_s) for samples_s in launches if samples_s]


def _split_of(score: Score) -> Split:
    return score.data, score.split, score.metric


def _shared_split(scores: Sequence[Score], variants: Sequence[Variant]) -> Split | None:
    """The (data, split, metric) that most variants were scored on; unlike ones may not stand side by side."""
    known = {variant.sha256 for variant in variants}
    counts = Counter(_split_of(score) for score in scores if score.model_sha256 in known)
    return max(counts, key=lambda split: (counts[split], split[1] == "test", split), default=None)


def _with_sides(rows: list[Row], folder: Path) -> list[Row]:
    sides = _comparison_sides(folder) if (folder / "models").is_dir() else _run_side(rows, folder)
    found = (sides.get(row.name) or sides.get(Path(row.variant.file).stem) or Side() for row in rows)
    return [replace(row, side=side) for row, side in zip(rows, found, strict=True)]


def _comparison_sides(folder: Path) -> dict[str, Side]:
    """Sides by model name. Files are listed, never named by a record: a name must not lead out of here."""
    models = sorted((folder / "models").glob("*.onnx"))
    return {model.stem: _side(folder / "models", f"{model.stem}.") for model in models}


def _run_side(rows: list[Row], folder: Path) -> dict[str, Side]:
    """A run folder has one side, that of the model it exported: `compact`, else the last variant. Where a file was
    compressed, its records bear its name.
    """
    owners = [row for row in rows if "compact" in (row.name, Path(row.variant.file).stem)]
    own = {(owners or rows)[-1].name: _side(folder, "")}
    stems = [path.name.removesuffix(_PLAN) for path in sorted(folder.glob(f"*{_PLAN}"))]
    return own | {stem: _side(folder, f"{stem}.") for stem in stems}


def _side(folder: Path, prefix: str) -> Side:
    return Side(
        plan=_optional(Plan, folder / f"{prefix}plan.json"),
        parity=_optional(Parity, folder / f"{prefix}parity.json"),
        train=_optional(TrainRecord, folder / f"{prefix}train.json"),
        frontier=_optional(Frontier, folder / f"{prefix}frontier.json"),
        explanation=_optional(Explanation, folder / f"{prefix}explanation.json"),
    )


def _with_headline(rows: list[Row], wanted: str | None) -> list[Row]:
    others = rows[1:]
    if wanted is not None and wanted not in [row.name for row in others]:
        names = ", ".join(row.name for row in others) or "none, there is only the baseline"
        raise InputError(f"headline {wanted!r} is no variant beside the baseline; choose one of: {names}")
    planned = [row for row in others if row.side.plan and row.comparison]
    fastest = max(planned, key=lambda row: row.comparison.ratio if row.comparison else 0.0, default=None)
    names = [row.name for row in others]
    chosen = wanted or ("compact" if "compact" in names else fastest.name if fastest else (names or [""])[-1])
    return [rows[0], *(replace(row, role="headline") if row.name == chosen else row for row in others)]


def _score_cautions(scores: Evaluation | None, rows: list[Row]) -> list[Caution]:
    """One caution for each variant whose name was scored, but as another file."""
    known = {row.variant.sha256 for row in rows}
    stale = {score.name for score in (scores.scores if scores else []) if score.model_sha256 not in known}
    return [
        Caution(
            what=f"evaluation.json scores a {row.name!r} that is another file than the one measured (sha256).",
            remedy="Evaluate the measured file again; until then its accuracy counts as not measured.",
        )
        for row in rows
        if row.score is None and row.name in stale
    ]


def _parity_cautions(rows: list[Row]) -> list[Caution]:
    return [
        Caution(
            what=f"Parity failed for {row.name!r}: {check.what}, batch {check.batch}.",
            remedy="Do not ship this model; export it again and look at the first layer that differs.",
        )
        for row in rows
        for check in (row.side.parity.checks if row.side.parity else [])
        if not check.passed
    ]


def _optional(schema: type[R], path: Path) -> R | None:
    return schema.read(path) if path.exists() else None


def _recipe(path: Path, train: TrainRecord | None) -> str | None:
    """The text of recipe.toml, else the recipe that the training record keeps."""
    if not path.exists():
        return train.recipe.model_dump_json(indent=1, exclude_defaults=True) if train else None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; expected a TOML text file") from error


def _importance(row: Row) -> int:
    return {"headline": 0, "other": 1, "baseline": 2}[row.role]


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None
