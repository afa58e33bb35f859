"""Device cards: one TOML file a board, shipped in `cards/` or written by the user.

Nothing in them is probed.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from pydantic import ValidationError

from ..errors import InputError
from ..files import write_text
from ..records import Card, first_problem


def names() -> list[str]:
    """The devices one can name, sorted."""
    return sorted(_sources())


def find(name: str) -> Card:
    """The card of device `name`; the user's own card goes before a shipped one of that name."""
    sources = _sources()
    if name not in sources:
        raise InputError(f"unknown device '{name}'; known are {', '.join(sorted(sources))}")
    return _read(name, sources[name])


def write(told: Mapping[str, str | int]) -> Path:
    """Write a card into the user's folder, whole or not at all. InputError for one that is wrong or there already."""
    try:
        name = Card.model_validate(told).name
    except ValidationError as error:
        raise InputError(f"the card would be wrong: {first_problem(error)}") from error
    path = user_folder() / f"{name}.toml"
    if path.exists():
        raise InputError(f"there is a card {path}; edit or remove it, or choose another name")
    # a JSON string is a TOML string, but for the one control character that JSON leaves as it is
    lines = (f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in told.items())
    write_text(path, "".join(lines).replace("\x7f", "\\u007f"))
    return path


def user_folder() -> Path:
    """Where the user's cards lie (XDG base directory specification)."""
    configuration = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(configuration) / "rankfold" / "devices"


def _sources() -> dict[str, Traversable]:
    return {file.name.removesuffix(".toml"): file for file in (*_cards(_shipped()), *_cards(user_folder()))}


def _shipped() -> Traversable:
    return files(__package__ or "rankfold.devices").joinpath("cards")


def _cards(folder: Traversable) -> Iterator[Traversable]:
    if folder.is_dir():
        yield from (file for file in folder.iterdir() if file.name.endswith(".toml"))


def _read(name: str, source: Traversable) -> Card:
    try:
        card = Card.model_validate(tomllib.loads(source.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"cannot read card {source}: {error.strerror}; check its permissions") from error
    except ValidationError as error:
        raise InputError(f"card {source}: {first_problem(error)}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise InputError(f"card {source}: expected TOML, found {error}; correct it") from error
    if card.name != name:
        raise InputError(f"card {source} calls its device '{card.name}'; rename the file or the device")
    return card
