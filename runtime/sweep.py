"""Settings to measure one after the other: `threads=1,2`, `cores=0,1,0+1`, `cores=clusters`, `spinning=on,off`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from ..errors import InputError
from ..records import Facts
from .turns import Options, checked_pairs, choose_cores

SPINNING = "session.intra_op.allow_spinning"
_KEYS = "threads=1,2; cores=0,1,0+1 or cores=clusters; spinning=on,off"


def settings(texts: Sequence[str], options: Options, facts: Facts) -> list[tuple[str, Options]]:
    """Every combination with its name, such as `threads-2-spinning-off`, in the order they were given.

    Raises InputError for what is no setting, and for a combination that the device cannot have.
    """
    axes = [_axis(text, facts) for text in texts]
    if repeated := {key for key, _ in axes if [other for other, _ in axes].count(key) > 1}:
        raise InputError(f"--sweep {min(repeated)} is given twice; write all its values in one")
    found = []
    for chosen in product(*([(key, name, value) for name, value in values] for key, values in axes)):
        changed = options
        for key, _, value in chosen:
            changed = _with(changed, key, value)
        checked_pairs(changed)
        choose_cores(changed, facts)
        found.append(("-".join(f"{key}-{name}" for key, name, _ in chosen), changed))
    return found


def _with(options: Options, key: str, value: Any) -> Options:
    if key == "spinning":
        return replace(options, session_config={**options.session_config, SPINNING: value})
    return replace(options, **{key: value})


def _axis(text: str, facts: Facts) -> tuple[str, list[tuple[str, Any]]]:
    key, _, words = text.partition("=")
    names = [word.strip() for word in words.split(",")]
    if len(set(names)) < len(names):
        raise InputError(f"--sweep {text!r} names a value twice; leave one out")
    try:
        if key == "threads":
            return key, [(name, int(name)) for name in names]
        if key == "spinning":
            return key, [(name, {"on": "1", "off": "0"}[name]) for name in names]
        if key == "cores" and names == ["clusters"]:
            masks = facts.clusters or [facts.affinity]
            return key, [("+".join(map(str, mask)), tuple(mask)) for mask in masks]
        if key == "cores":
            return key, [(name, tuple(int(core) for core in name.split("+"))) for name in names]
    except (ValueError, KeyError):
        pass
    raise InputError(f"--sweep {text!r}: expected {_KEYS}")
