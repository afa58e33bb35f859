"""The pairs that are done, kept beside the record until it is whole: `bench.json.part`.

Whatever ends a measurement, a board that is gone for good, a runner that dies, Ctrl-C, finished launches are not lost:
the same command with --resume goes on after them.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError
from ..records import Begun, Done


class Kept:
    """`done` are the pairs so far; each is on the disk before the next is taken, where there is a `path`."""

    def __init__(self, path: Path | None = None, *, resume: bool = False) -> None:
        self.path, self._resume, self._first = path, resume, ""
        self.done: list[Done] = []

    def begun(self, key: str) -> Begun | None:
        """How that was begun which is to go on, its pairs now in `done`; None where it is to begin.

        InputError where there is nothing of this `key` to go on with.
        """
        if not self._resume:
            return None
        assert self.path is not None, "only what is kept goes on"
        begun = self._read() if self.path.exists() else None
        if begun is None or begun.key != key:
            raise InputError(f"{self.path} has no pairs of these models, options and device; leave out --resume")
        return begun

    def begin(self, begun: Begun) -> Begun:
        """What all pairs have in common. It is written with the first of them, over what was kept before."""
        self._first = begun.model_dump_json() + "\n"
        return begun

    def add(self, done: Done) -> None:
        """Keep one more pair."""
        self.done.append(done)
        if self.path is not None:
            with self.path.open("w" if self._first else "a", encoding="utf-8") as file:
                file.write(self._first + done.model_dump_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._first = ""

    def forget(self) -> None:
        """The record is written: remove the file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self) -> Begun | None:
        """The first line; the pairs of the others go to `done`, without a last one that was cut short."""
        assert self.path is not None, "read only what is kept"
        try:
            first, *lines = self.path.read_text(encoding="utf-8").split("\n")[:-1] or [""]
            begun = Begun.model_validate_json(first)
            self.done = [Done.model_validate_json(line) for line in lines]
        except ValueError:  # no UTF-8, no JSON, or no such record
            return None
        os.truncate(self.path, sum(len(line.encode()) + 1 for line in (first, *lines)))
        return begun
