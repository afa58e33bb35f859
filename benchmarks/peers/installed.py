"""The libraries that are compared with: imported when they are used, and why one cannot be."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from ...errors import InputError


@contextmanager
def quiet() -> Iterator[None]:
    """Keep a library's remarks about itself from users."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def library(name: str) -> Any:
    """A module of a third party. Raises InputError where it cannot be imported."""
    try:
        with quiet():
            return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:  # the last three: made for other versions
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"expected the library {name}, found: {why}; make peers installs it") from error


@cache
def missing(*names: str) -> str | None:
    """Why one of these modules cannot be imported, in a line; None where all can."""
    try:
        for name in names:
            library(name)
    except InputError as error:
        return str(error)
    return None
