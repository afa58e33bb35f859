"""The Makefile's rules are files: nothing is done twice, and nothing that is half done looks done."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

import pytest

from .conftest import ROOT
from .making import GOALS, Maker, environment

_STARTED_WITHIN_S = 120.0  # a slow machine imports torch for half a minute


@pytest.fixture
def again(finished, tmp_path) -> Maker:
    """A copy of the finished run, to be spoilt."""
    return finished.copy(tmp_path)


def test_make_alone_prints_every_target():
    done = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True, env=environment())
    (phony,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"^  make ([a-z0-9-]+) +\S", done.stdout, re.MULTILINE)) == set(phony.split())


def test_the_second_make_gives_no_command(finished):
    finished.given()
    done = finished.make(*GOALS)
    assert done.returncode == 0, done.stderr
    assert finished.given() == []


@pytest.mark.parametrize(
    ("touched", "redone"),
    [
        ("recipe.toml", ["train", "export", "bench", "evaluate", "report"]),
        ("run/train.json", ["export", "bench", "evaluate", "report"]),
        ("run/plan.json", ["bench", "evaluate", "report"]),
        ("run/bench.json", ["report"]),
        ("run/evaluation.json", ["report"]),
        ("run/report.html", []),
    ],
)
def test_a_touched_file_redoes_what_depends_on_it_and_nothing_else(again, touched, redone):
    os.utime(again.folder / touched)
    assert again.would_give() == redone


def test_another_device_is_measured_anew(again):
    done = again.make("report", DEVICE="no-such-board")
    assert "unknown device 'no-such-board'" in done.stderr
    assert [line.split()[0] for line in again.given()] == ["bench"]


@pytest.mark.parametrize("goal", GOALS)
def test_an_unknown_recipe_is_one_line(tmp_path, goal):
    maker = Maker(tmp_path)
    done = maker.make(goal, RECIPE="no-such-recipe")
    assert done.returncode == 2
    assert re.fullmatch(r".*rankfold: no recipe no-such-recipe; give RECIPE=.*glyphs-dec3.*\n", done.stderr)
    assert maker.given() == []
    assert not maker.run.exists()


def test_a_changed_recipe_killed_in_training_leaves_nothing_done_and_goes_on(again):
    again.recipe.write_text(again.recipe.read_text().replace("steps = 30", "steps = 60"))
    changed_s = time.time()
    _kill_in_training(again)
    assert not (again.run / "train.json").exists()
    assert "--resume" not in again.given()[0]
    os.utime(again.recipe, (changed_s - 60, changed_s - 60))  # `test -nt` of some shells knows whole seconds only

    (given,) = again.make_here("train")
    assert given.endswith("--resume")
    assert not list(again.run.glob(".*"))
    assert again.would_give() == ["export", "bench", "evaluate", "report"]


def _kill_in_training(maker: Maker) -> None:
    """Kill make and all below it as soon as the first epoch of the new training is saved."""
    began = time.time()
    process = subprocess.Popen(
        maker.command(*GOALS), stdout=subprocess.DEVNULL, env=environment(), start_new_session=True
    )
    checkpoint = maker.run / "checkpoint.safetensors"
    try:
        while not (checkpoint.exists() and checkpoint.stat().st_mtime > began):
            assert time.time() < began + _STARTED_WITHIN_S, "no checkpoint was written"
            assert process.poll() is None, "make ended before it could be killed"
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
