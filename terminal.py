"""What the terminal shows while something runs: progress with time left, on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

PLAIN_EVERY_S = 10.0  # without a terminal: a line now and then, for logs


class Shown(Protocol):
    """What shows how far something is."""

    def show(self, done: int, total: int, left_s: float | None, text: str) -> None:
        """Advance to `done` of `total`."""
        ...


class Bar:
    """One line of progress; `show(done, total, left_s, text)` as often as one likes."""

    def __init__(self, name: str, progress: Progress) -> None:
        self._name, self._progress = name, progress
        self._task = progress.add_task("", total=None, name=plain(name), left="", text="")
        self._printed = time.monotonic()

    def show(self, done: int, total: int, left_s: float | None, text: str) -> None:
        """Advance to `done` of `total`."""
        left = "" if left_s is None else f"{duration(left_s)} left"
        self._progress.update(self._task, completed=done, total=total, left=left, text=plain(text))
        if not self._progress.console.is_terminal and time.monotonic() - self._printed > PLAIN_EVERY_S:
            self._printed = time.monotonic()
            self._progress.console.print(Text(f"{self._name}: {done}/{total} {plain(text)} {left}"), soft_wrap=True)


@contextmanager
def stderr_for_child() -> Iterator[IO[str]]:
    """Where stderr leads now, for the bars of a child whose own leads nowhere; if it dies the cursor comes back."""
    with open(os.dup(2), "w", encoding=sys.stderr.encoding, errors="backslashreplace") as stream:
        try:
            yield stream
        finally:
            Console(file=stream).show_cursor(True)


@contextmanager
def bars(stream: IO[str] | None = None) -> Iterator[Callable[[str], Bar]]:
    """A function that makes named progress bars, on stderr or another stream; all disappear at the end."""
    console = Console(file=stream, stderr=True, markup=False, emoji=False)
    columns = (
        TextColumn("{task.fields[name]}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}", markup=False),
        TextColumn("{task.fields[text]}", markup=False),
        TextColumn("{task.fields[left]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield lambda name: Bar(name, progress)


def progress(new_bar: Callable[[str], Shown]) -> Callable[[str, int, int], None]:
    """A report(what, done, total) that shows a bar for each `what`, with the time left at the present pace."""
    shown: dict[str, tuple[Shown, float]] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in shown:
            shown[what] = new_bar(what), time.monotonic()
        if not done:  # begun again, it may be
            shown[what] = shown[what][0], time.monotonic()
        bar, began = shown[what]
        left = (time.monotonic() - began) / done * (total - done) if done else None
        bar.show(done, total, left, "")

    return report


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def plain(text: str) -> str:
    """Names from models may hold terminal control characters: they are shown, not obeyed."""
    return "".join(character if character.isprintable() else "�" for character in text)
