"""The transport to a board over ssh: the system's OpenSSH client, a POSIX shell and Python there, nothing else.

    files → place → workdir/files/<sha256>.onnx, sent once, checked there       launch → board.py behind ssh's pipes

Hosts, keys, agents and jumps are the user's ~/.ssh/config; an unknown or changed host key is refused. One connection
is shared by all that a command starts, and closes when that ends or has been idle. Bytes travel through stdin, so
dropbear and busybox without sftp will do.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shlex
import signal
import stat
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import IO

from ..errors import DeviceError, InputError, Unreachable
from ..files import sha256_of
from ..records import Card
from .child import PATIENCE_S, ChildProcess, forget, killed, last_line, started, tail
from .emulated import EmulatedProcess
from .local import BOARD

LIMIT_S = 60.0  # of a command that only looks at something
_SLOWEST_BYTES_PER_S = 100e3  # a file that travels more slowly than this is given up
_CONNECT_S, _ALIVE_EVERY_S, _ALIVE_MISSED, _IDLE_S = 15, 10, 3, 20
_KEPT_BYTES = 4 << 30  # files on the board beyond this go, those first that were not used for the longest time
# sshd refuses some of those who are not let in yet, from the tenth on (MaxStartups 10:30:100), and all boards may lie
# behind one that we jump over.
_HANDSHAKES = threading.BoundedSemaphore(8)
_MAX_OUTPUT_BYTES, _MOST_DIGITS = 1 << 16, 19
_CONNECTION_FAILED, _NOT_EXECUTABLE, _NOT_FOUND, _SIGNAL = 255, 126, 127, 128  # statuses of ssh(1) and sh(1)
_FULL = "No space left"  # on device
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
_CHANGED_KEY = re.compile(r"Host key for (\S+) has changed")
# Never what the user's configuration may say for a person at a terminal.
_OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ControlMaster": "auto",
    "ControlPersist": _IDLE_S,
    "ConnectTimeout": _CONNECT_S,
    "ServerAliveInterval": _ALIVE_EVERY_S,
    "ServerAliveCountMax": _ALIVE_MISSED,
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "LogLevel": "ERROR",
}
# What is there of a file: `whole`, or the bytes that an interrupted upload left.
_HELD = """
umask 077; mkdir -p {files} && cd {files} || exit
if test -f {name}; then touch {name}; echo whole; elif test -f {name}.part; then wc -c < {name}.part; else echo 0; fi
"""
_RECEIVE = """
cd {files} || exit
cat >> {name}.part || {{ rm -f {name}.part; exit 1; }}
case "$(sha256sum < {name}.part)" in
  {sha256}*) mv {name}.part {name};;
  *) test "$(wc -c < {name}.part)" -lt {size} || rm {name}.part; echo "it arrived damaged" >&2; exit 1;;
esac
kept=0
ls -t | while read -r file; do
  kept=$((kept + $(wc -c < "$file") / 1024))
  test "$kept" -le {kept_kb} || rm -f "$file"
done
"""
_PREPARED = 'python={venv}/bin/python; test -x "$python" || python={python}\n'
_VERSION = '"$python" -c "import sys; print(sys.version.split()[0])"'


class SshTransport:
    """Reaches the board of a card. Paths there are relative to the user's home folder unless the card says else.

    A `bare` one starts the card's own interpreter, also where `devices setup` has made a virtual environment.
    """

    def __init__(self, card: Card, *, bare: bool = False) -> None:
        assert card.host is not None, "a card with transport ssh has one"
        self.card, self._host, self._bare = card, card.host, bare
        self._placed: set[str] = set()
        _hang_up_at_end(*self._options(), *self._address())

    def launch(self) -> ChildProcess:
        """Start board.py, or the runner that answers instead, there."""
        kind = EmulatedProcess if self.card.is_emulated else ChildProcess
        run = self._python(BOARD) if self.card.runner is None else shlex.quote(self.card.runner)
        return self._started(run, kind)

    def start(self, program: Path, *arguments: str) -> ChildProcess:
        """Start a program of ours there. Leaving the process's context ends it, as does the end of the connection."""
        return self._started(self._python(program, *arguments))

    def _python(self, program: Path, *arguments: str) -> str:
        words = shlex.join([self.place(program), *arguments])
        return f'{self.interpreter}"$python" -I {words}'

    def _started(self, run: str, kind: type[ChildProcess] = ChildProcess) -> ChildProcess:
        """By the shell, which has a status for a signal."""
        return kind(self._command(f"{run}; exit $?"), self._death, PATIENCE_S)

    def place(self, path: Path) -> str:
        """Where the board has this file, by its content; what is missing of it is sent, and checked there."""
        if path.with_name(f"{path.name}.data").is_file():
            raise InputError(f"{path} keeps its weights in another file, which no board is sent; save it as one file")
        sha256, size_bytes = sha256_of(path), path.stat().st_size
        suffix = path.suffix.lower()
        name = sha256 + (suffix if _SUFFIX.fullmatch(suffix) else "")
        files = f"{self.card.workdir}/files"
        if name not in self._placed:
            told = {"files": shlex.quote(files), "name": name, "sha256": sha256, "size": size_bytes}
            with contextlib.nullcontext() if self._placed else _HANDSHAKES:  # the first command makes the connection
                held = self.run(_HELD.format(**told))
            if held != "whole":
                with path.open("rb") as content:
                    content.seek(min(_whole(held), size_bytes))
                    receive = _RECEIVE.format(**told, kept_kb=_KEPT_BYTES >> 10)
                    self.run(receive, LIMIT_S + size_bytes / _SLOWEST_BYTES_PER_S, content)
            self._placed.add(name)
        return f"{files}/{name}"

    def run(self, script: str, limit_s: float = LIMIT_S, content: IO[bytes] | None = None) -> str:
        """The line that a shell script prints there, its stdin being `content`. DeviceError when it fails."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:  # ProxyCommand may keep a pipe open
            streams = {"stdin": content or subprocess.DEVNULL, "stdout": out, "stderr": said}
            try:
                child = started(self._command(script), **streams)
            except OSError as error:
                raise DeviceError(f"cannot start ssh: {error.strerror}; install the OpenSSH client") from error
            with child:
                try:
                    code = child.wait(limit_s)
                except subprocess.TimeoutExpired:
                    raise self._lost(f"no answer within {limit_s:g} s") from None
                finally:
                    child.kill()
                    forget(child)
            if code:
                raise self._refusal(tail(said)) if code == _CONNECTION_FAILED else self._failure(code, tail(said))
            out.seek(0)
            line = out.read(_MAX_OUTPUT_BYTES).decode(errors="replace").strip()
        if "\n" in line:
            raise DeviceError(
                f"the shell of {self._name} says {line[:60]!r} to everybody; let its start-up files (~/.bashrc) print "
                "nothing where no person is"
            )
        return line

    @property
    def venv(self) -> str:
        """The virtual environment that `devices setup` makes."""
        return f"{self.card.workdir}/venv"

    def python_version(self) -> str:
        """Of the interpreter that `launch` starts, however old it is."""
        return self.run(self.interpreter + _VERSION)

    @property
    def interpreter(self) -> str:
        """A line of shell that sets $python."""
        python = shlex.quote(self.card.python)
        return f"python={python}\n" if self._bare else _PREPARED.format(venv=shlex.quote(self.venv), python=python)

    def _command(self, script: str) -> list[str]:
        return ["ssh", *self._options(), *self._address(), script]

    def _options(self) -> list[str]:
        options = {**_OPTIONS, "ControlPath": f"{_sockets()}/%C"}
        return [f"-o{key}={value}" for key, value in options.items()]

    def _address(self) -> list[str]:
        """How the card names its board to ssh; what it does not say is left to ssh's configuration."""
        card = self.card
        given = {"-F": card.ssh_config, "-l": card.user, "-p": card.port}
        options = (part for key, value in given.items() if value is not None for part in (key, str(value)))
        return [*options, "--", self._host]

    # --- what went wrong, and what to do ------------------------------------------------------------------------

    def _death(self, code: int, said: str) -> DeviceError:
        """Why a board process ended."""
        if code == _CONNECTION_FAILED or code < 0:
            return self._refusal(said)
        if code in (_NOT_FOUND, _NOT_EXECUTABLE) or _FULL in said:
            return self._failure(code, said)
        if code > _SIGNAL and (name := _signal_name(code - _SIGNAL)):
            return DeviceError(f"the board process on {self._name} {killed(name, self._check)}")
        how = f"ended with status {code}, its last line: {last_line(said)}"
        return DeviceError(f"the board process on {self._name} {how}; {self._check}")

    def _failure(self, code: int, said: str) -> DeviceError:
        """Why a command there failed."""
        if code in (_NOT_FOUND, _NOT_EXECUTABLE):
            return DeviceError(f"{self._name} lacks a program: {last_line(said)}; install it, or correct the card")
        if _FULL in said:
            return DeviceError(f"the disk of {self._name} is full; remove what is in {self.card.workdir}/files there")
        return DeviceError(f"{self._name}: {last_line(said) or f'a command ended with status {code}'}; {self._check}")

    def _refusal(self, said: str) -> DeviceError:
        """Why ssh did not connect, or lost the connection, by what it said."""
        by_hand = shlex.join(["ssh", *self._address()])
        if changed := _CHANGED_KEY.search(said):
            forget = f"ssh-keygen -R {shlex.quote(changed[1])}"
            return DeviceError(
                f"the host key of {self._name} has changed: another machine answers, or it was set up anew; if you "
                f"know why, forget the old one with `{forget}`, then connect once by hand: {by_hand}"
            )
        if "Host key verification failed" in said:
            return DeviceError(f"the host key of {self._name} is not known; connect once to check it: {by_hand}")
        if "Permission denied" in said:
            return DeviceError(f"{self._name} takes none of your keys; ssh-copy-id sends one, then try: {by_hand}")
        if "Could not resolve" in said:
            return DeviceError(f"{self._name} is no known host; correct its card, or name it in ~/.ssh/config")
        return self._lost(last_line(said) or "the connection ended")

    def _lost(self, why: str) -> Unreachable:
        self._placed.clear()
        return Unreachable(f"no connection to {self._name}: {why}; is it on, and does ssh reach it?")

    @property
    def _name(self) -> str:
        return f"'{self.card.name}' ({self._host})"

    @property
    def _check(self) -> str:
        return f"`rankfold devices check {self.card.name}` says what is missing"


def _signal_name(number: int) -> str | None:
    return signal.Signals(number).name if number in set(signal.Signals) else None


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < _MOST_DIGITS):
        raise DeviceError(f"the board's shell printed {text[:60]!r}, expected a number of bytes; run again")
    return int(text)


@cache
def _hang_up_at_end(*options: str) -> None:
    """When this program ends the connection takes nobody more, and closes after the last one who shares it."""

    def stop() -> None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(["ssh", "-O", "stop", *options], capture_output=True, timeout=_CONNECT_S, check=False)

    atexit.register(stop)


def _sockets() -> Path:
    """A folder of ours alone with a short name, for sockets may not have a long one; not TMPDIR, which may go."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folder = Path(runtime) / "rankfold" if 0 < len(runtime) <= 32 else Path(f"/tmp/rankfold-{os.geteuid()}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise DeviceError(f"{folder} is not a folder of yours alone; remove it, for ssh keeps its sockets there")
    return folder
