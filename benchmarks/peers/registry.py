"""Every tool of the comparison, in the order of its tables. A file of adapters is a line here."""

from __future__ import annotations

from . import aimet, nncf, onnxsim_pruning, pat, torch_pruning, tucker
from .tools import Tool


def tools() -> list[Tool]:
    """Those that cannot run here too: the table names them with the reason."""
    return [
        *torch_pruning.TOOLS,
        *pat.TOOLS,
        *tucker.TOOLS,
        *onnxsim_pruning.TOOLS,
        *aimet.TOOLS,
        *nncf.TOOLS,
    ]
