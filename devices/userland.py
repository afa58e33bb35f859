"""An aarch64 userland in the user's cache: Debian packages unpacked into a folder, wheels beside them.

Nothing is installed on this machine and nobody needs to be root. apt resolves and downloads with a state of its own,
from where this machine's apt is told to; what is downloaded is kept until the userland is whole.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from ..errors import DeviceError
from ..files import cache_folder, locked
from .child import last_line

PACKAGES = ("python3", "libstdc++6")
_LIMIT_S = 900.0
_OURS = """
APT::Architecture "arm64"; APT::Architectures {{ "arm64"; }};
APT::Install-Recommends "false"; APT::Sandbox::User "root"; Acquire::Languages "none";
Dir::Etc::Parts "{folder}/none"; Dir::Etc::Main "{folder}/none/none";
Dir::State "{folder}/state"; Dir::State::status "{folder}/status"; Dir::Cache "{folder}/cache";
"""
_NOT_TAKEN = ("Acquire::IndexTargets", "Acquire::Languages")  # of this machine's settings; its proxies are


def path() -> Path:
    """Where the userland lies: its runtime is this machine's, so that outputs can be compared."""
    return _base() / f"onnxruntime-{runtime_version()}"


def runtime_version() -> str:
    """Of the onnxruntime here."""
    return version("onnxruntime")


def _base() -> Path:
    return cache_folder() / "aarch64"


@contextmanager
def making(tell: Callable[[str], None]) -> Iterator[Path]:
    """A folder with Debian's Python for aarch64; on success it becomes `path()`, else it goes.

    One process makes it at a time, the others wait. What was downloaded is kept until it is whole.
    """
    base = _base()
    with locked(base / "lock"):
        downloads, part = base / "downloads", base / "part"
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        try:
            _unpack(_downloaded(downloads, tell), part)
            yield part
            os.sync()
            shutil.rmtree(path(), ignore_errors=True)
            part.rename(path())
        finally:
            shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(downloads)


def _downloaded(folder: Path, tell: Callable[[str], None]) -> list[Path]:
    """The packages and all they need; those that are there from another time are not downloaded again."""
    for name in ("none", "state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    settings = folder / "apt.conf"
    settings.write_text(_of_this_machine() + _OURS.format(folder=folder))
    told = {**os.environ, "APT_CONFIG": str(settings), "LC_ALL": "C"}
    tell("asking for Debian's packages for arm64")
    _run(["apt-get", "-qq", "update"], told)
    tell(f"downloading {' and '.join(PACKAGES)}")
    _run(["apt-get", "-qq", "-y", "--download-only", "install", *PACKAGES], told)
    return sorted((folder / "cache" / "archives").glob("*.deb"))


def _of_this_machine() -> str:
    """How apt downloads here: proxies, and what else an administrator has decided."""
    lines = _run(["apt-config", "dump", "Acquire"], {**os.environ, "LC_ALL": "C"}).splitlines()
    return "\n".join(line for line in lines if not line.startswith(_NOT_TAKEN))


def _unpack(packages: Sequence[Path], root: Path) -> None:
    for name in ("bin", "sbin", "lib"):  # /usr merged, as Debian's own installer has it
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as reading:
            command = ["tar", "-x", "-C", str(root), "--keep-directory-symlink", "--no-same-owner"]
            done = subprocess.run(command, stdin=reading.stdout, capture_output=True, text=True, check=False)
        if done.returncode or reading.returncode:
            raise DeviceError(f"cannot unpack {package.name}: {last_line(done.stderr)}; try again")


def _run(command: Sequence[str], environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LIMIT_S, check=False, env=environment, errors="replace"
        )
    except FileNotFoundError:
        raise DeviceError(f"there is no {command[0]} here; the userland is made of Debian's packages, by apt") from None
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"{command[0]} did not end within {_LIMIT_S:g} s; check the network, then try again"
        ) from None
    if done.returncode:
        remedy = "needs Debian's package sources, with arm64; try again"
        raise DeviceError(f"{command[0]} failed: {last_line(done.stderr)}; it {remedy}")
    return done.stdout
