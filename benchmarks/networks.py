"""What a comparison consists of: its spec, and the networks that follow from it, each with its training."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError

from ..errors import InputError
from ..records import ComparisonSpec, Recipe, TrainRecord, VariantSpec, first_problem
from ..train.recipe import load_recipe


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

    variant: VariantSpec
    job: Job

    @property
    def name(self) -> str:
        """The variant's name: a comparison folder holds one seed."""
        return self.variant.name


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


def networks_of(spec: ComparisonSpec, out: Path, seed: int) -> list[Network]:
    """Every variant at one seed, in the order of the spec; runs lie in `out`/runs."""
    own = {variant.name: variant for variant in spec.variants}
    found = []
    for variant in spec.variants:
        trained = own[variant.trained_by or variant.name]
        assert trained.recipe is not None  # ComparisonSpec has checked it
        recipe = load_recipe(trained.recipe, trained.changes)
        found.append(Network(variant, Job(trained.name, recipe, seed, out / "runs" / trained.name)))
    return found


def config_hash(network: Network) -> str:
    """Twelve hex digits over what decides a network: recipe (without defaults) and export settings."""
    recipe = network.job.recipe.model_dump(mode="json", exclude_defaults=True)
    export = network.variant.model_dump(mode="json", include={"write", "form", "energy", "parameters_of"})
    text = json.dumps([recipe, export], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
