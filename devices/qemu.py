"""The transport to an emulated board: board.py on the aarch64 onnxruntime, under QEMU's user-mode emulation.

It shows whether a model runs there and what it puts out. An emulator never yields a time: what would be one is refused,
whoever asks.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DeviceError, InputError
from ..files import write_text
from ..records import Card
from . import userland
from .emulated import EmulatedProcess
from .local import BOARD, death

_NEON = "fp asimd evtstrm crc32 cpuid"


@dataclass(frozen=True)
class Processor:
    """What the system of a board says of its processor, part number and features as in Linux's /proc/cpuinfo.

    The runtime chooses its kernels by them. QEMU before 8.1 would show it this machine's instead.
    """

    name: str
    part: int
    features: str

    def cpuinfo(self, cores: int) -> str:
        """The file, for so many cores."""
        rows = {
            "model name": self.name,
            "Features": self.features,
            "CPU implementer": "0x41",
            "CPU architecture": "8",
            "CPU variant": "0x0",
            "CPU part": f"0x{self.part:03x}",
            "CPU revision": "1",
        }
        text = "".join(f"{key}\t: {value}\n" for key, value in rows.items())
        return "".join(f"processor\t: {core}\n{text}\n" for core in range(cores))


# By QEMU's names. The features are those of the board, never more than QEMU's processor of that name has.
PROCESSORS = {
    "cortex-a53": Processor("Cortex-A53", 0xD03, _NEON),
    "cortex-a72": Processor("Cortex-A72", 0xD08, _NEON),
    "cortex-a76": Processor(
        "Cortex-A76", 0xD0B, f"{_NEON} aes pmull sha1 sha2 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
    ),
}


class QemuTransport:
    """Starts board processes under QEMU, in the userland of `root`, by default the one that `devices setup` made."""

    def __init__(self, card: Card, root: Path | None = None) -> None:
        self._card, self._root, self._program = card, root or userland.path(), program()
        if card.cpu not in PROCESSORS:
            known = ", ".join(PROCESSORS)
            raise InputError(f"card '{card.name}': no processor '{card.cpu}' is known; choose one of {known}")
        self._processor = PROCESSORS[card.cpu]

    def launch(self, plugin: Sequence[str] = ()) -> EmulatedProcess:
        """Start board.py; leaving the process's context ends it."""
        return EmulatedProcess([*self.python(plugin), "-sP", str(BOARD)], death)

    def place(self, path: Path) -> str:
        """Where the file is: what the userland does not have is this machine's."""
        return str(path.resolve())

    def python(self, plugin: Sequence[str] = ()) -> list[str]:
        """The command of its Python interpreter, with a plugin of QEMU's. Python's own variables here do not reach it,
        and it hashes alike in every process, so that it counts alike.
        """
        if not (self._root / "usr").is_dir():
            setup = f"rankfold devices setup {self._card.name}"
            raise DeviceError(
                f"no aarch64 userland with onnxruntime {userland.runtime_version()} at {self._root}; make it: {setup}"
            )
        prefix = self._prefix()
        options = ["-cpu", str(self._card.cpu), "-L", str(prefix), *plugin]
        for name in os.environ:
            options += ["-U", name] if name.startswith("PYTHON") else []
        options += ["-E", "PYTHONHASHSEED=0"]
        return [self._program, *options, str(prefix / "usr" / "bin" / "python3")]

    def _prefix(self) -> Path:
        """A folder of links to the userland, with the processor's own /proc/cpuinfo: QEMU looks there first."""
        prefix = self._root / "as" / str(self._card.cpu)
        (prefix / "proc").mkdir(parents=True, exist_ok=True)
        for name in ("usr", "bin", "sbin", "lib", "etc"):
            with contextlib.suppress(FileExistsError):
                (prefix / name).symlink_to(f"../../{name}")
        cpuinfo, text = prefix / "proc" / "cpuinfo", self._processor.cpuinfo(os.cpu_count() or 1)
        if not cpuinfo.exists() or cpuinfo.read_text() != text:
            write_text(cpuinfo, text)
        return prefix


def program() -> str:
    """QEMU's user-mode emulator of aarch64; DeviceError where there is none."""
    found = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if found is None:
        raise DeviceError("no qemu-aarch64 here; install QEMU's user-mode emulation (Debian's package qemu-user)")
    return found
