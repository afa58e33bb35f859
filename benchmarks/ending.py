"""How a benchmark's command ends, and what its rows call the machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import RankfoldError, complaint
from ..records import Facts


@contextmanager
def in_one_line(interrupted: str = "the same command goes on where it was") -> Iterator[None]:
    """An error that a user can mend, or Ctrl-C, is one line on stderr and an exit code."""
    try:
        yield
    except RankfoldError as error:
        print(complaint(str(error)), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(complaint(f"interrupted; {interrupted}"), file=sys.stderr)
        sys.exit(130)


def machine_of(facts: Facts) -> str:
    """Rows of one machine and runtime go together."""
    return f"{facts.cpu_model}, onnxruntime {facts.onnxruntime_version}"
