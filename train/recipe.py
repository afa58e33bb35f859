"""Recipes: read from TOML, checked against `records.Recipe`, changed key by key with --set."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import InputError
from ..records import Measure, Recipe, RegularizerSpec, first_problem

# Where a recipe has no strengths and a target is given: only their ratio counts, and what dies before the network has
# learned something is chosen by chance.
_STRENGTHS = {"relative": True, "low_rank": 0.01, "group": 1.0, "start_at": 0.2}


def load_recipe(name: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, or a packaged one by its name, with `key.path=value` changes applied."""
    path = _find(name)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read recipe {path}: {error.strerror}; check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path}: not TOML: {error}") from error
    for change in changes:
        _apply(tree, change)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"recipe {path}: {first_problem(error)}") from error


def aimed(recipe: Recipe, of: Measure, share: float) -> Recipe:
    """The recipe with this target in place of its own, and with strengths where it has none."""
    spec = recipe.regularizer or RegularizerSpec()
    changes: dict[str, Any] = {} if spec.low_rank or spec.group else dict(_STRENGTHS)
    changes |= {"hold_macs": None, "target_macs": None, "target_params": None, "target_latency": None}
    changes[f"target_{of}"] = share
    return recipe.model_copy(update={"regularizer": spec.model_copy(update=changes)})


def packaged() -> list[str]:
    """Names of the recipes that come with rankfold."""
    return sorted(entry.name.removesuffix(".toml") for entry in _folder().iterdir() if entry.name.endswith(".toml"))


def _folder() -> Path:
    return Path(str(files("rankfold.train.recipes")))


def _find(name: str | Path) -> Path:
    path = Path(name)
    if path.exists() or path.suffix == ".toml":
        return path
    if str(name) in packaged():
        return _folder() / f"{name}.toml"
    raise InputError(f"no recipe '{name}'; give a .toml file or one of {', '.join(packaged())}")


def _apply(tree: dict[str, Any], change: str) -> None:
    """Set one key from `a.b=value`; the value is TOML, and a bare word is a string."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {change!r}: expected key=value, such as optimizer.lr=0.05")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *parents, last = key.strip().split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise InputError(f"--set {change!r}: '{parent}' is a value, not a table")
    tree[last] = value
