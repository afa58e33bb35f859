"""The command line, and `make` on a tiny recipe in a temporary folder with every command it gives written down."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .conftest import ROOT
from .train.recipes import toml

RANKFOLD = (sys.executable, "-P", "-m", "rankfold")
GOALS = ("train", "export", "bench", "report")
_RECORDER = """#!/bin/sh
echo "$*" >> "{log}"
exec "{python}" -P -m rankfold "$@"
"""


def rankfold(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run([*RANKFOLD, *arguments], cwd=folder, capture_output=True, text=True, check=False)


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
