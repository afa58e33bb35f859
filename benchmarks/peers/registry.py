"""Every tool of the comparison, in the order of its tables. A file of adapters is a line here."""

from __future__ import annotations

from .tools import Tool


def tools() -> list[Tool]:
    """Those that cannot run here too: the table names them with the reason."""
    return []
