"""numpy and onnxruntime on a board, in a virtual environment of their own: a card enters, versions leave."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import DeviceError, InputError
from ..records import Card
from . import wheels
from .check import outfit
from .ssh import SshTransport
from .transport import Outfit

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
    if card.transport != "ssh":
        raise InputError(f"device '{card.name}' is this machine; install numpy and onnxruntime here with pip")
    if card.runner is not None:
        raise InputError(
            f"device '{card.name}' has a runner of its own, {card.runner}; build it with another onnxruntime"
        )
    board = SshTransport(card, bare=True)
    with board.launch() as process:
        before = outfit(process, card)
    with TemporaryDirectory(prefix="rankfold-") as folder:
        archive = Path(folder) / "packages.gz"
        tell(f"collecting wheels for Python {before.python_version}, {before.libc}, {before.architecture}")
        wheels.packed(before, archive)
        tell(f"sending {archive.stat().st_size / 1e6:.1f} MB")
        placed = board.place(archive)
    tell(f"unpacking into {board.venv}")
    made = _MAKE.format(venv=shlex.quote(board.venv), archive=shlex.quote(placed))
    board.run(board.interpreter + made, _LIMIT_S)
    with SshTransport(card).launch() as process:
        after = outfit(process, card)
    if lost := [name for name, version in after.versions.items() if version is None]:
        raise DeviceError(f"{' and '.join(lost)} cannot be imported there though installed; run `devices check` for it")
    return after
