"""Errors a user may meet, each with the exit code the command line ends with (design: exit codes).

Inner code raises these with a short text (what was expected, what was found, the remedy); the command
adds the file, the layer or the board. Anything else that reaches the command line is a defect of ours.
"""

from __future__ import annotations


class RankfoldError(Exception):
    """Base of all errors that end a command with one line on stderr and no traceback."""

    exit_code = 2


class InputError(RankfoldError):
    """Bad usage or bad input: a file, an option, a recipe, a model."""


class CheckFailed(RankfoldError):
    """A gate, a parity or an accuracy check failed, or a budget is infeasible."""

    exit_code = 1


class Infeasible(CheckFailed):
    """No choice is within the limits; with wider ones there may be."""


class DeviceError(RankfoldError):
    """The device could not be reached, or failed while it ran."""

    exit_code = 3


class Unreachable(DeviceError):
    """There is no connection to the device, or none any more; it may come back."""


class Inconclusive(RankfoldError):
    """The measurement is not precise enough to decide; the text says how much longer it needs."""

    exit_code = 4


def complaint(message: str) -> str:
    """The one line that a command ends with, whatever names from models or boards are in it."""
    shown = "".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in message)
    return f"rankfold: {' '.join(shown.split())}"


def system_complaint(error: OSError) -> str:
    """The same for what the operating system refused where nobody expected it: a full disk under a print, say."""
    where = f"{error.filename}: " if error.filename else ""
    return complaint(f"{where}{error.strerror or error}; check the path and the space left")
