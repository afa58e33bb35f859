"""The command line, and `make` on a tiny recipe in a temporary folder with every command it gives written down."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rankfold.cli import main

from .conftest import ROOT
from .train.recipes import toml

RANKFOLD = (sys.executable, "-P", "-m", "rankfold")
GOALS = ("train", "export", "bench", "report")
_RECORDER = """#!/bin/sh
echo "$*" >> "{log}"
[ -n "$ONLY_WRITE_DOWN" ] && exit 0
exec "{python}" -P -m rankfold "$@"
"""


def rankfold(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run([*RANKFOLD, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def rankfold_here(words: list[str]) -> int:
    """Run a command in this process, which has imported torch: its exit code."""
    before, sys.argv = sys.argv, ["rankfold", *words]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before


class Maker:
    """A folder with recipe.toml, a stand-in for the virtual environment, and the run folder `run`: new, or as it is."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.recipe, self.run = folder, folder / "recipe.toml", folder / "run"
        self._log = folder / "commands.log"
        venv = folder / "venv"
        if venv.exists():
            return
        (venv / "bin").mkdir(parents=True)
        script = venv / "bin" / "rankfold"
        script.write_text(_RECORDER.format(log=self._log, python=sys.executable))
        script.chmod(0o755)
        (venv / ".ready").touch()
        self.recipe.write_text(toml())

    def command(self, *goals: str, **variables: object) -> list[str]:
        """The command line of make; with -o, whoever edits pyproject.toml meanwhile starts no installation."""
        venv = self.folder / "venv"
        settings = {"VENV": venv, "RECIPE": self.recipe, "OUT": self.run, "PAIRS": 2} | variables
        options = ["-C", str(ROOT), "-o", str(venv / ".ready")]
        return ["make", *options, *goals, *(f"{name}={value}" for name, value in settings.items())]

    def make(self, *goals: str, **variables: object) -> subprocess.CompletedProcess[str]:
        """Run make to its end."""
        return subprocess.run(
            self.command(*goals, **variables), capture_output=True, text=True, check=False, env=environment()
        )

    def make_here(self, *goals: str) -> list[str]:
        """Have make write down the commands that it would wait for, run them in this process, and return them."""
        done = subprocess.run(
            self.command(*goals), capture_output=True, text=True, check=False,
            env=environment() | {"ONLY_WRITE_DOWN": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = self.given()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("rankfold.runtime.turns._PAIR_S", 0.1)
            for line in lines:
                assert rankfold_here(shlex.split(line)) == 0, line
        return lines

    def given(self) -> list[str]:
        """The rankfold commands given since the last call."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        self._log.unlink(missing_ok=True)
        return lines

    def would_give(self) -> list[str]:
        """Names of the commands that `make train export bench report` would give."""
        done = self.make("-n", *GOALS)
        assert done.returncode == 0, done.stderr
        return re.findall(r"bin/rankfold (\w+)", done.stdout)

    def copy(self, folder: Path) -> Maker:
        """The same state elsewhere, times of files included."""
        other = Maker(folder)
        shutil.copy2(self.recipe, other.recipe)
        shutil.copytree(self.run, other.run)
        return other


def environment() -> dict[str, str]:
    """Ours, without what an outer make hands down."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
