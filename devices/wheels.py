"""What a board must have installed, put together here for its Python, C library and processor.

pip does it with wheels alone, from wherever pip is configured to look: the board needs no network and no pip.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import DeviceError
from .child import last_line
from .transport import Outfit

PACKAGES = ("numpy", "onnxruntime")
_LIMIT_S = 900.0
_OLDEST_GLIBC, _LEGACY = 17, {"x86_64": ("manylinux2010", "manylinux1", "manylinux2014"), "aarch64": ("manylinux2014",)}


def missing(found: Outfit) -> str | None:
    """Why there are no wheels for such a board; None where there are."""
    try:
        with TemporaryDirectory(prefix="rankfold-") as folder:
            install(found, Path(folder), "--dry-run", "--ignore-installed")
    except DeviceError as error:
        return str(error)
    return None


def packed(found: Outfit, archive: Path) -> None:
    """Write all packages for such a board, as they lie in site-packages, to a .tar.gz that depends on them alone."""
    with TemporaryDirectory(prefix="rankfold-") as folder:
        target = Path(folder)
        install(found, target, "--no-compile")
        with (
            archive.open("wb") as file,
            gzip.GzipFile("", "wb", 6, file, mtime=0) as packing,
            tarfile.open(fileobj=packing, mode="w") as tar,
        ):
            for path in sorted(target.rglob("*")):
                if path.is_file():
                    tar.add(path, path.relative_to(target).as_posix(), filter=_anonymous)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same bytes whoever packs them and when: an upload that was cut goes on."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o755 if entry.mode & 0o100 else 0o644
    return entry


def install(found: Outfit, target: Path, *options: str, packages: Sequence[str] = PACKAGES) -> None:
    """Install the packages into a folder as the board would; `options` are pip's."""
    python = ".".join(found.python_version.split(".")[:2])
    platforms = [f"--platform={name}" for name in platform_tags(found)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--implementation=cp", f"--python-version={python}"]
    done = _run([*command, *platforms, *options, *packages])
    if done.returncode:
        where = f"Python {python}, {found.libc or 'unknown C library'}, {found.architecture}"
        raise DeviceError(f"no wheels of {' and '.join(packages)} for {where}: {last_line(done.stderr)}")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise DeviceError(f"pip did not end within {_LIMIT_S:g} s; check the connection to its index") from None


def platform_tags(found: Outfit) -> list[str]:
    """Platforms whose wheels run there, the newest first (PEP 600); none but pure Python where it is no glibc."""
    library, _, version = (found.libc or "").partition(" ")
    parts = version.split(".")
    if library != "glibc" or len(parts) < 2 or not parts[1].isdecimal() or len(parts[1]) > 3:
        return ["any"]
    names = [f"manylinux_2_{minor}" for minor in range(int(parts[1]), _OLDEST_GLIBC - 1, -1)]
    return [f"{name}_{found.architecture}" for name in (*names, *_LEGACY.get(found.architecture, ()), "linux")]
