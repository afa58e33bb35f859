"""A board process under an emulator: it computes what a board computes, and how long that takes says nothing."""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from .child import ChildProcess

_TIMED = {"serve", "block", "paced", "contest", "operators"}  # requests whose answers are times
_SLOWER = 20.0  # than a board's own limits allow for


class EmulatedProcess(ChildProcess):
    """A board process that is asked for no times, and that says what it is."""

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """The answer to a request; InputError for one whose answer would be a time."""
        if request["command"] in _TIMED:
            raise InputError("an emulator's times say nothing of a board's; count instructions: rankfold cost")
        answer = super().ask(request, _SLOWER * limit_s)
        return answer | {"emulated": True} if request["command"] == "probe" else answer
