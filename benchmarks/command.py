"""What the commands of benchmarks share: this machine's stopwatch and its name in rows, and how a command ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..devices import probe
from ..devices.local import LocalTransport
from ..errors import RankfoldError, complaint
from ..records import Facts
from ..runtime.latency import Stopwatch, stopwatch
from ..runtime.turns import Options


@contextmanager
def in_one_line(interrupted: str = "the same command goes on where it was") -> Iterator[None]:
    """An error that a user can mend, Ctrl-C or SIGTERM is a line on stderr and an exit code; no worker outlives us."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except RankfoldError as error:
        print(complaint(str(error)), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(complaint(f"interrupted; {interrupted}"), file=sys.stderr)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)


def stopwatch_here(threads: int = 1, table: Path | None = None) -> Stopwatch:
    """This machine's, as it is found now."""
    with LocalTransport().launch() as process:
        facts = probe.facts(process)
    return stopwatch(LocalTransport(), facts, Options(threads=threads), table)


def machine_of(facts: Facts) -> str:
    """Rows of one machine and runtime go together."""
    return f"{facts.cpu_model}, onnxruntime {facts.onnxruntime_version}"
