"""Boards for tests: a real ssh server on the loopback interface, with keys and a home folder of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import pytest

from rankfold.records import Card

from .conftest import SERVERS, SOAK

SSHD, DROPBEAR = "/usr/sbin/sshd", "/usr/sbin/dropbear"  # not on everybody's PATH
START_S = 20.0
# In a mount namespace of its own the user's home folder is another one, sshd has the folder that it insists on, and
# the first core has a frequency governor to choose.
_ELSEWHERE = """
mount -t tmpfs none /run && mkdir -m 755 /run/sshd && mount --bind "$0/passwd" /etc/passwd &&
mount --bind "$0/core" /sys/devices/system/cpu/cpu{core} && exec "$@"
"""
_SSHD = """
ListenAddress {address}
AllowUsers *@127.*
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/home/.ssh/authorized_keys
StrictModes no
UsePAM no
PidFile none
PasswordAuthentication no
SetEnv TMPDIR={folder}/tmp
"""
_CONFIG = """
Host board
  HostName 127.0.0.1
  User {user}
  Port {port}
  IdentityFile {folder}/key
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
"""


class Server:
    """A board: `card(name)` describes it, `home` is its user's folder, `governor` the file that names the first
    core's, and `cut()` ends every connection to it.
    """

    def __init__(self, kind: str, folder: Path, address: str = "127.0.0.1") -> None:
        self.kind, self.folder, self.address, self.home, self.port = (
            kind,
            folder,
            address,
            folder / "home",
            _free_port(),
        )
        self.config, self.known_hosts = folder / "config", folder / "known_hosts"
        (self.home / ".ssh").mkdir(parents=True, mode=0o700)
        (folder / "tmp").mkdir()
        self.governor = folder / "core" / "cpufreq" / "scaling_governor"
        self.governor.parent.mkdir(parents=True)
        self.governor.write_text("ondemand\n")
        self.governor.with_name("scaling_available_governors").write_text("ondemand performance\n")
        _keygen(folder / "key")
        authorized = self.home / ".ssh" / "authorized_keys"
        authorized.write_bytes((folder / "key.pub").read_bytes())
        authorized.chmod(0o600)
        user = pwd.getpwuid(os.geteuid())
        self.config.write_text(_CONFIG.format(user=user.pw_name, port=self.port, folder=folder))
        command, public = self._sshd() if kind == "sshd" else self._dropbear()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {public}")
        users = folder / "passwd"
        mine = [user.pw_name, "x", str(user.pw_uid), str(user.pw_gid), "", str(self.home), self._shell()]
        entries = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
        users.write_text("".join(":".join(mine if entry[0] == mine[0] else entry) + "\n" for entry in entries))
        elsewhere = _ELSEWHERE.format(core=min(os.sched_getaffinity(0)))
        self._log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", elsewhere, str(folder), *command],
            env={**os.environ, "TMPDIR": str(folder / "tmp")},  # the board's
            stderr=self._log,
            stdout=self._log,
        )
        self._wait()

    def _sshd(self) -> tuple[list[str], str]:
        """Its command, and its public key."""
        _keygen(self.folder / "host_key")
        settings = self.folder / "sshd_config"
        settings.write_text(_SSHD.format(address=self.address, port=self.port, folder=self.folder))
        return [SSHD, "-D", "-e", "-f", str(settings)], (self.folder / "host_key.pub").read_text()

    def _dropbear(self) -> tuple[list[str], str]:
        key = str(self.folder / "host_key")
        made = _run("dropbearkey", "-t", "ed25519", "-f", key)
        command = [DROPBEAR, "-F", "-E", "-e", "-s", "-p", f"127.0.0.1:{self.port}", "-r", key]
        public = next(line for line in made.splitlines() if line.startswith("ssh-"))
        return [*command, "-P", str(self.folder / "pid")], f"{public}\n"

    def _shell(self) -> str:
        """Another one for each: dash or busybox, and bash."""
        return "/bin/sh" if self.kind == "sshd" else shutil.which("bash") or "/bin/sh"

    def card(self, name: str = "board", **changes: object) -> Card:
        """With this interpreter, which has all that is needed."""
        told = {"host": "board", "ssh_config": str(self.config), "python": sys.executable, **changes}
        return Card.model_validate({"name": name, "about": "a test", "transport": "ssh", "tested": "never", **told})

    def cut(self, how: signal.Signals = signal.SIGKILL) -> int:
        """Kill the server's end of every connection, or stop it; how many there were."""
        found = _children(self.process.pid)
        for child in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, how)
        return len(found)

    def programs(self, word: str) -> list[int]:
        """Processes of this board's user that have `word` in their command line."""
        mark = f"HOME={self.home}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                ours = mark in (folder / "environ").read_bytes().split(b"\0")
                if ours and word.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found

    def mount(self, folder: str, size_bytes: int) -> Path:
        """A disk of so many bytes in a folder of the user's home: where it is seen from here."""
        path = self.home / folder
        path.mkdir()
        mounting = ("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(path))
        _run("nsenter", f"--target={self.process.pid}", "--mount", *mounting)
        return Path(f"/proc/{self.process.pid}/root{path}")

    def stop(self) -> None:
        """End it and all connections to it."""
        self.process.terminate()
        self.cut()
        self.process.wait(START_S)
        self._log.close()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        self.stop()
        pytest.skip(f"{self.kind} does not start here: {(self.folder / 'log').read_text()[-200:]!r}")


def interpreter(folder: Path, script: str) -> str:
    """A python that is a shell script."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def changed(folder: Path, change: str) -> str:
    """A python whose board.py, the module `board`, has been changed by these lines."""
    forger = folder / "forger.py"
    forger.write_text(
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('board', sys.argv.pop(1))\n"
        "board = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(board)\n"
        f"if hasattr(board, 'probe'):  # the keeper stays as it is\n{indent(change, '    ')}\nboard.main()\n"
    )
    return interpreter(
        folder, f'test "$1" = -c && exec {sys.executable} "$@"; shift; exec {sys.executable} -I {forger} "$@"'
    )


def on(kind: str) -> pytest.MarkDecorator:
    """On one kind of server in `check`, on both in `soak`."""
    return pytest.mark.parametrize("board", SERVERS if SOAK else (kind,), indirect=True)


def start(kind: str, folder: Path, address: str = "127.0.0.1") -> Iterator[Server]:
    """An sshd or a dropbear until the test is over; skipped by name where it cannot be."""
    programs = [
        "ssh",
        "ssh-keygen",
        "unshare",
        "nsenter",
        *([SSHD] if kind == "sshd" else [DROPBEAR, "dropbearkey"]),
    ]
    if missing := [program for program in programs if shutil.which(program) is None]:
        pytest.skip(f"{kind} on loopback needs {', '.join(missing)}")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"{kind} on loopback needs a mount namespace for its home folder: run the tests as root")
    server = Server(kind, folder, address)
    yield server
    server.stop()


def _children(parent: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    except OSError:  # it has ended
        return []


def _keygen(path: Path) -> None:
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path))


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
