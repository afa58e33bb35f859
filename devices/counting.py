"""Instructions of a model's run on an emulated board, by a plugin of QEMU's: exact, and a proxy for time.

count.c is compiled here, once, for the QEMU that is here; board.py marks where a run begins and ends. Caches, memory
and what a processor does at once are not in a count.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from ..errors import DeviceError, InputError
from ..files import cache_folder, replacing, sha256_of
from ..records import Part
from .child import last_line
from .emulated import EmulatedProcess
from .qemu import QemuTransport, program
from .transport import LOAD_LIMIT_S, checked

RUNS = 3  # of which the one with the fewest instructions counts: an allocation more or less is in some
_INTERFACES = range(6, 9)  # versions of QEMU whose plugins have interface 1, with names for arguments
_LIMIT_S = 60.0


@dataclass(frozen=True)
class Counted:
    """One run of a model: instructions, SIMD instructions among them that multiply and add, and how often they do."""

    instructions: int
    multiplying: int
    multiply_adds: int


class CountingTransport:
    """A transport whose contests are of instructions: each counts as a nanosecond. It asks for a model once."""

    def __init__(self, transport: QemuTransport) -> None:
        self._transport, self._known = transport, dict[tuple[str, ...], Counted]()

    def launch(self) -> CountingProcess:
        """What answers like a board process; it starts one where it has to."""
        return CountingProcess(self._counted)

    def place(self, path: Path) -> str:
        """Where a process there finds the file."""
        return self._transport.place(path)

    def _counted(self, request: dict[str, Any]) -> list[Counted]:
        how = [str(request[key]) for key in ("provider", "session_config", "shapes", "inputs")]
        keys = {path: (sha256_of(Path(path)), *how) for path in request["models"]}
        if todo := [path for path, key in keys.items() if key not in self._known]:
            found = count(self._transport, {**request, "models": todo})
            self._known.update(zip((keys[path] for path in todo), found, strict=True))
        return [self._known[keys[path]] for path in request["models"]]


class CountingProcess:
    """Answers contests, all rounds alike; nothing else is asked of it."""

    def __init__(self, counted: Callable[[dict[str, Any]], list[Counted]]) -> None:
        self._counted = counted

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """The answer of board.py's `contest`, in nanoseconds that are instructions."""
        del limit_s
        assert request["command"] == "contest", "an emulator is asked for counts alone"
        return {"samples_s": [[1e-9 * one.instructions] * RUNS for one in self._counted(request)]}


class _Marked(Part):
    """What the board answers: how many models it has run."""

    models: int


def count(transport: QemuTransport, request: dict[str, Any]) -> list[Counted]:
    """The cheapest run of each of `request["models"]`, in one fresh process; else as for `serve`, with one thread."""
    if request["threads"] != 1:
        raise InputError(
            f"instructions are counted with one thread, not {request['threads']}: spinning would count too"
        )
    with TemporaryDirectory(prefix="rankfold-") as folder:
        marks = Path(folder) / "marks"
        escaped = [str(path).replace(",", ",,") for path in (plugin(), marks)]
        with transport.launch(["-plugin", f"{escaped[0]},out={escaped[1]}"]) as process:
            _run(process, request)
        rows = [list(map(int, line.split())) for line in marks.read_text().splitlines()]
    runs = [
        Counted(*(after - before for before, after in zip(*pair, strict=True)))
        for pair in zip(rows[::2], rows[1::2], strict=True)
    ]
    if len(runs) != RUNS * len(request["models"]):
        raise DeviceError(f"{len(runs)} runs were counted, expected {RUNS} of each model; run again")
    return [min(runs[k : k + RUNS], key=lambda one: one.instructions) for k in range(0, len(runs), RUNS)]


def _run(process: EmulatedProcess, request: dict[str, Any]) -> None:
    checked(_Marked, process.ask({**request, "command": "count", "runs": RUNS}, LOAD_LIMIT_S))


def plugin() -> Path:
    """count.c as a library that QEMU loads. DeviceError where this QEMU takes none, or nothing compiles it."""
    source = files(__package__ or "rankfold.devices").joinpath("count.c")
    qemu_version()
    compiler = shutil.which("cc") or shutil.which("gcc")
    with TemporaryDirectory(prefix="rankfold-") as folder:
        text = Path(folder) / "count.c"
        text.write_bytes(source.read_bytes())
        library = cache_folder() / "aarch64" / f"count-{sha256_of(text)[:16]}.so"
        if library.exists():
            return library
        if compiler is None:
            raise DeviceError("no C compiler here to make the counter with; install one (Debian: gcc, libc6-dev)")
        with replacing(library) as made:
            options = ["-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-o", str(made)]
            done = subprocess.run(
                [compiler, *options, str(text)], capture_output=True, text=True, timeout=_LIMIT_S, check=False
            )
            if done.returncode:
                raise DeviceError(f"{compiler} cannot compile the counter: {last_line(done.stderr)}; install libc6-dev")
    return library


def qemu_version() -> str:
    """Of the QEMU here; DeviceError where it takes no plugins that are written as count.c is."""
    qemu = program()
    said = [_output(qemu, option) for option in ("--version", "-h")]
    found = re.search(r"version (\d+)\.\S+", said[0])
    if found is None:
        raise DeviceError(f"{qemu} does not say which version it is; install Debian's package qemu-user")
    version = found[0].removeprefix("version ")
    if int(found[1]) not in _INTERFACES:
        known = f"QEMU {_INTERFACES[0]} to {_INTERFACES[-1]}"
        raise DeviceError(
            f"QEMU {version} has another plugin interface than the counter, made for {known}; install one"
        )
    if "-plugin" not in said[1]:
        raise DeviceError(f"{qemu} takes no plugins; install Debian's package qemu-user, not the static one")
    return version


def _output(qemu: str, option: str) -> str:
    return subprocess.run([qemu, option], capture_output=True, text=True, timeout=_LIMIT_S, check=False).stdout
