"""The grid of a sweep: values by key, and the points that they span."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ..errors import InputError
from ..records import Recipe, RegularizerSpec, Setting

SEED, ENERGY = "seed", "energy"


@dataclass(frozen=True)
class Point:
    """A training: where it stands in the grid, and the recipe that follows from it."""

    name: str
    settings: Mapping[str, Setting]
    recipe: Recipe
    seed: int


@dataclass(frozen=True)
class Task:
    """A sweep as each of its processes knows it. `energies` are exported from every training; none: the recipe's."""

    recipe: str
    base: Recipe
    grid: Mapping[str, Sequence[Setting]]
    energies: Sequence[float]
    points: Sequence[Point]
    out: Path
    data: Path | None
    storage: str | None
    threads: int
    tile: int | None
    heartbeat_s: int

    def variants(self, point: Point) -> list[tuple[str, float | None]]:
        """Names of the networks that come of a training, each with its energy."""
        if not self.energies:
            return [(point.name, None)]
        return [(f"{point.name},{ENERGY}={energy:g}", energy) for energy in self.energies]


def grid_of(texts: Sequence[str]) -> dict[str, list[Setting]]:
    """`low_rank=1e-3,1e-2` and so on: values by key. A key without a dot is one of [regularizer], or `seed`."""
    grid: dict[str, list[Setting]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not key or not values.strip():
            raise InputError(f"--grid {text!r}: expected key=value,value such as low_rank=1e-3,1e-2")
        if "." not in key and key != SEED and key not in RegularizerSpec.model_fields:
            known = ", ".join([SEED, *RegularizerSpec.model_fields])
            raise InputError(f"--grid {text!r}: no key '{key}'; use a path such as optimizer.lr, or one of {known}")
        if key in grid:
            raise InputError(f"--grid names '{key}' twice; give all its values at once")
        grid[key] = list(dict.fromkeys(_value(part.strip(), text) for part in values.split(",")))
    return grid


def _value(text: str, whole: str) -> Setting:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if not isinstance(value, bool | int | float | str) or value == "":
        raise InputError(f"--grid {whole!r}: expected numbers, words, true or false between the commas")
    return value


def points_of(recipe: str, changes: Sequence[str], grid: Mapping[str, Sequence[Setting]]) -> list[Point]:
    """Every point of the grid with its recipe, checked, so that nothing is found wrong after hours."""
    from ..train.recipe import load_recipe

    points = []
    for values in product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        seed = settings.get(SEED, 0)
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise InputError(f"--grid seed={seed}: expected whole numbers from 0 up")
        more = [f"{_path(key)}={json.dumps(value)}" for key, value in settings.items() if key != SEED]
        points.append(Point(_name(settings), settings, load_recipe(recipe, [*changes, *more]), seed))
    names = Counter(point.name for point in points)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise InputError(f"two points of the grid would be called '{twice}'; leave one out")
    return points


def _path(key: str) -> str:
    return key if "." in key else f"regularizer.{key}"


def _name(settings: Mapping[str, Setting]) -> str:
    parts = [f"{key.rpartition('.')[2]}={value}" for key, value in settings.items()]
    return re.sub(r"[^\w.=,+-]", "-", ",".join(parts)) or "recipe"
