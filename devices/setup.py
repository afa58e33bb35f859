"""numpy and onnxruntime on a board, in a virtual environment of their own; for an emulated one a whole userland.

A card enters, versions leave.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import DeviceError, InputError
from ..records import Card
from . import userland, wheels
from .check import outfit
from .probe import check_architecture
from .qemu import QemuTransport
from .ssh import SshTransport
from .transport import Outfit, Transport

_DIST_PACKAGES = "usr/lib/python3/dist-packages"  # Debian's Python looks there whatever its version
_LIMIT_S = 1200.0  # to unpack 100 MB on a slow card
# Whole or not at all; without ensurepip, which Debian keeps in a package of its own.
_MAKE = """
made={venv}.part; trap 'rm -rf "$made"' EXIT; rm -rf "$made"; "$python" -m venv --without-pip "$made" || exit
"$made/bin/python" - {archive} <<'END' || exit
import sys, sysconfig, tarfile
with tarfile.open(sys.argv[1]) as packages:
    packages.extractall(sysconfig.get_path("platlib"))
END
rm -rf {venv}; mv "$made" {venv} && rm -f {archive}
"""


def set_up(card: Card, tell: Callable[[str], None]) -> Outfit:
    """Install what is missing to measure there, and say what is installed then. DeviceError where it cannot be."""
    if card.transport == "qemu":
        return _emulated(card, tell)
    if card.transport != "ssh":
        raise InputError(f"device '{card.name}' is this machine; install numpy and onnxruntime here with pip")
    if card.runner is not None:
        raise InputError(
            f"device '{card.name}' has a runner of its own, {card.runner}; build it with another onnxruntime"
        )
    board = SshTransport(card, bare=True)
    before = _found(board, card)
    check_architecture(card, before.architecture)
    with TemporaryDirectory(prefix="rankfold-") as folder:
        archive = Path(folder) / "packages.gz"
        tell(f"collecting wheels for Python {before.python_version}, {before.libc}, {before.architecture}")
        wheels.packed(before, archive)
        tell(f"sending {archive.stat().st_size / 1e6:.1f} MB")
        placed = board.place(archive)
    tell(f"unpacking into {board.venv}")
    made = _MAKE.format(venv=shlex.quote(board.venv), archive=shlex.quote(placed))
    board.run(board.interpreter + made, _LIMIT_S)
    return _complete(_found(SshTransport(card), card))


def _emulated(card: Card, tell: Callable[[str], None]) -> Outfit:
    """The userland in the cache; nothing is done where it is there."""
    board = QemuTransport(card)  # before anything is downloaded: is there an emulator?
    if userland.path().is_dir() and all((there := _found(board, card)).versions.values()):
        return there
    with userland.making(tell) as root:
        board = QemuTransport(card, root)
        before = _found(board, card)
        tell(f"installing wheels for Python {before.python_version}, {before.libc}, {before.architecture}")
        packages = ["numpy", f"onnxruntime=={userland.runtime_version()}"]
        wheels.install(before, root / _DIST_PACKAGES, "--no-compile", packages=packages)
        tell("starting it")
        return _complete(_found(board, card))


def _found(board: Transport, card: Card) -> Outfit:
    with board.launch() as process:
        return outfit(process, card)


def _complete(found: Outfit) -> Outfit:
    if lost := [name for name, version in found.versions.items() if version is None]:
        raise DeviceError(f"{' and '.join(lost)} cannot be imported there though installed; run `devices check` for it")
    return found
