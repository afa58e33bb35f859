"""Keeps a board for one command as long as this process lives: a lock that all its users see, and its governor.

Needs Python 3.8 on Linux, nothing else; start it as `python -I keeper.py TOKEN`. It answers each JSON request, a line
on stdin, with a JSON line. It ends when stdin does, at SIGTERM and at SIGHUP: then the governor is what it was. The
lock is free however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import signal
import sys
import tempfile
import time
from typing import IO, Any

LOCK = os.path.join(tempfile.gettempdir(), "rankfold.lock")  # of the machine: people may have accounts of their own
GOVERNORS = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
AVAILABLE = "scaling_available_governors"  # beside each


class Refused(Exception):
    """The request cannot be met; the text is for the person who asked."""


def keep(request: dict[str, Any], held: contextlib.ExitStack) -> dict[str, Any]:
    """Who has the board; nobody else from now on until `held` is left, and `request["governor"]` has its cores."""
    holder = take(request["who"], held)
    if holder is not None:
        return holder
    if request["governor"] is not None:
        govern(request["governor"], held)
    return {"who": None, "held_s": 0.0, "pid": os.getpid()}


def take(who: str, held: contextlib.ExitStack) -> dict[str, Any] | None:
    """Take the lock, or say who has it; a keeper of ours that has not noticed that its connection is lost is ended."""
    lock = opened()
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who, since_s, pid = "somebody", time.monotonic(), 0
        with lock, contextlib.suppress(ValueError, TypeError, KeyError):
            told = json.load(lock)
            who, since_s, pid = str(told["who"]), float(told["since_s"]), int(told["pid"])
        if is_ours(pid):
            os.kill(pid, signal.SIGTERM)
        return {"who": who, "held_s": time.monotonic() - since_s, "pid": pid}
    held.enter_context(lock)
    with contextlib.suppress(OSError):  # a full disk: nobody learns who it is, and it holds
        lock.truncate()
        json.dump({"who": who, "since_s": time.monotonic(), "pid": os.getpid()}, lock)
        lock.flush()
    return None


def opened() -> IO[str]:
    """The lock's file. Everybody may write who has it, and who opens another's must not ask to create it."""
    os.umask(0)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(LOCK, os.O_CREAT | os.O_EXCL, 0o666))
    return os.fdopen(os.open(LOCK, os.O_RDWR | os.O_NOFOLLOW), "r+")


def is_ours(pid: int) -> bool:
    """Whether a process was started with our token, whatever a file says of it."""
    return sys.argv[1] in (read(f"/proc/{pid:d}/cmdline") or "").split("\0")


def govern(wanted: str, held: contextlib.ExitStack) -> None:
    """Have every core's frequency chosen by this governor until `held` is left."""
    files = sorted(glob.glob(GOVERNORS))
    if not files:
        raise Refused("this system lets nobody choose a frequency governor (no cpufreq in /sys); leave out --governor")
    for path in files:
        before, available = read(path), read(os.path.join(os.path.dirname(path), AVAILABLE))
        if available is not None and wanted not in available.split():
            raise Refused(f"there is no governor '{wanted}', only {', '.join(available.split())}; choose one of these")
        if before is None or before == wanted:
            continue
        try:
            write(path, wanted)
        except OSError as error:
            remedy = f"have it allowed there until the next boot: sudo chmod a+w {GOVERNORS}"
            raise Refused(f"the governor cannot be set, {path}: {error.strerror}; {remedy}") from error
        held.callback(write, path, before)


def read(path: str) -> str | None:
    """The text of a small system file, or None where there is none."""
    try:
        with open(path, errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def write(path: str, text: str) -> None:
    """Put a word into a system file."""
    with open(path, "w") as file:
        file.write(text)


def leave(*_: object) -> None:
    """End in order, and only once."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(1)


def main() -> None:
    """Answer requests until stdin ends."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    with contextlib.ExitStack() as held:
        for line in sys.stdin:
            try:
                answer = keep(json.loads(line), held)
            except Refused as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
