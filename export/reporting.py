"""How long work tells how far it is: `report(what, done, total)` is called as it goes."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """No progress to show."""
