"""Device cards: one TOML file a board, shipped in `cards/` or written by the user.

Nothing in them is probed.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from ..errors import InputError
from ..files import write_text
from ..records import Card, Fleet, Part, first_problem

Kind = TypeVar("Kind", bound=Part)


def names() -> list[str]:
    """The devices one can name, sorted."""
    return sorted(_sources())


def find(name: str) -> Card:
    """The card of device `name`; the user's own card goes before a shipped one of that name."""
    sources = _sources()
    if name not in sources:
        known = ", ".join(sorted(sources))
        raise InputError(f"unknown device '{name}'; known are {known}; rankfold devices add makes one known")
    return _read(name, sources[name])


def find_all(names: Sequence[str]) -> list[Card]:
    """The cards of several devices; InputError where one is named twice."""
    return _different([find(name.strip()) for name in names])


def fleet(path: Path) -> list[Card]:
    """The cards of all devices that a file names or describes."""
    told = _parsed(Fleet, path, "fleet")
    found = _different([*map(find, told.devices), *told.cards])
    if not found:
        raise InputError(f'fleet {path}: expected a device at least; write for example devices = ["pi4", "pi5"]')
    return found


def _different(cards: list[Card]) -> list[Card]:
    known = [card.name for card in cards]
    if twice := next((name for name in known if known.count(name) > 1), None):
        raise InputError(f"device '{twice}' is named twice; leave one out")
    return cards


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


def remove(name: str) -> Path:
    """Delete a card from the user's folder. InputError where there is none."""
    path = user_folder() / f"{name}.toml"
    if name not in _sources() or not path.is_file():
        raise InputError(f"expected a card of your own, found no {path}; shipped cards stay")
    path.unlink()
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
    card = _parsed(Card, source, "card")
    if card.name != name:
        raise InputError(f"card {source} calls its device '{card.name}'; rename the file or the device")
    return card


def _parsed(kind: type[Kind], source: Traversable, what: str) -> Kind:
    try:
        return kind.model_validate(tomllib.loads(source.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"cannot read {what} {source}: {error.strerror}; check its path and permissions") from error
    except ValidationError as error:
        raise InputError(f"{what} {source}: {first_problem(error)}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise InputError(f"{what} {source}: expected TOML, found {error}; correct it") from error
