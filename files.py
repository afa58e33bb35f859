"""Files that are either whole or absent: write beside, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

_CHUNK_BYTES = 1 << 20
_UNFINISHED = ".part"
_MASK = threading.Lock()  # the mask is the process's, and can only be read by setting it


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed over `path`, else removed.

    An `OSError` on the way (unwritable folder, full disk) becomes an `InputError` that names `path`.
    """
    path = Path(path)
    temporary = None
    try:
        with _writing(path):
            temporary = _temporary_beside(path)
            yield temporary
            _sync(temporary)
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_all(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield a scratch folder inside `folder`; on success its files `names` move up in this order, else all go.

    The last name stands for all: as long as it is the old one, the others may be too.
    """
    with (
        _writing(folder),
        tempfile.TemporaryDirectory(prefix=".", suffix=_UNFINISHED, dir=folder) as scratch,
    ):
        yield Path(scratch)
        for name in names:
            os.replace(Path(scratch) / name, folder / name)
        _sync(folder)


@contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that on success is fsynced, with all in it, and becomes `path`; else it goes.

    Raises InputError where `path` is there already, unless it is an empty folder.
    """
    with _writing(path):
        if path.is_symlink() or (path.exists() and not (path.is_dir() and next(path.iterdir(), None) is None)):
            raise InputError(f"{path}: expected no such file or folder, found one; remove it or choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=_UNFINISHED, dir=path.parent) as scratch:
            folder = Path(scratch) / "folder"
            folder.mkdir()
            yield folder
            for each in (folder, *folder.rglob("*")):
                _sync(each)
            os.replace(folder, path)
        _sync(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that this file is, made where it is missing; whoever else holds it is waited for, a process that
    was killed holds none.
    """
    import fcntl  # late: not every system has it

    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def digest(told: object) -> str:
    """Twelve hex digits over plain values, whatever the order of their keys: the name of a configuration."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def require_writable(path: Path) -> None:
    """Raise now the InputError that writing `path` would end in after hours of work."""
    with _writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _temporary_beside(path).unlink()


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left in a folder that nobody else writes to now."""
    for leftover in folder.glob(f".*{_UNFINISHED}"):
        if leftover.is_file():
            leftover.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def cache_folder() -> Path:
    """Where what can be made again lies (XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rankfold"


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another output") from error


def _temporary_beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:64]}.", suffix=_UNFINISHED, dir=path.parent)
    os.close(handle)
    return Path(name)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    with _MASK:
        mask = os.umask(0)
        os.umask(mask)
    return mask
