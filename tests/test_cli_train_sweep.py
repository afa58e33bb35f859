"""train-sweep: killed and resumed it loses no point; what is wrong is one line; the end is measured and reported."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from rankfold.records import Evaluation, Sweep
from rankfold.sweep.grid import Task, grid_of, points_of
from rankfold.sweep.study import opened
from rankfold.sweep.workers import work
from rankfold.train.recipe import load_recipe

from .conftest import SOAK
from .making import RANKFOLD, environment
from .train.recipes import toml

pytest.importorskip("torch")
TrialState = pytest.importorskip("optuna").trial.TrialState

WAIT_S = 1800.0  # a slow machine imports torch for half a minute
GRID, POINTS = "--grid low_rank=0,0.02,0.1 group=0,0.1 seed=0,1", 12

# The queue alone: a point is a line in a file at its beginning and one at its end.
QUEUE = """
import time
from pathlib import Path
from rankfold.sweep import point
from rankfold.sweep.grid import Task, grid_of, points_of
from rankfold.sweep.workers import work
from rankfold.train.recipe import load_recipe

def done(task, one, loaded, say):
    for moment in ("began", "ended"):
        with (task.out / moment).open("a") as file:
            file.write(one.name + "\\n")
        time.sleep(0.1)
    return 0.5

point.done = done
grid = grid_of(["low_rank=0,0.02,0.1", "group=0,0.1", "seed=0,1"])
work(Task(
    recipe="tiny.toml", base=load_recipe("tiny.toml"), grid=grid, energies=[], out=Path("sweep"), data=None,
    points=points_of("tiny.toml", [], grid), storage=None, threads=1, tile=2, heartbeat_s=1,
), lambda *said: None)
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(toml())
    (tmp_path / "sweep").mkdir()
    return path


@pytest.fixture
def started(tmp_path):
    """Starts a command; what still runs at the end is killed."""
    children: list[subprocess.Popen] = []

    def start(command: list[str]) -> subprocess.Popen:
        children.append(subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def wait_for(child: subprocess.Popen, ready) -> None:
    until = time.monotonic() + WAIT_S
    while not ready():
        assert child.poll() is None, "it ended before it was killed"
        assert time.monotonic() < until, "it did not get there"
        time.sleep(0.01)


@pytest.mark.skipif(not SOAK, reason="processes that import torch and Optuna, killed: in soak")
def test_of_twelve_points_none_is_lost_whoever_is_killed(recipe, tmp_path, started):
    command = [sys.executable, "-P", "-c", QUEUE]
    began, ended = tmp_path / "sweep" / "began", tmp_path / "sweep" / "ended"
    children = [started(command) for _ in range(2)]  # they share the points
    for child, enough in zip(children, (3, 6), strict=True):
        wait_for(child, lambda enough=enough: len(lines(ended)) >= enough)
        child.kill()
        child.wait()
    before = set(lines(ended))
    assert 3 <= len(before) < 12
    done = subprocess.run(command, cwd=tmp_path, env=environment(), check=False, timeout=WAIT_S)
    assert done.returncode == 0
    assert len(set(lines(ended))) == 12
    again = Counter(lines(began)) - Counter(dict.fromkeys(before, 1))
    assert sum(again.values()) - (12 - len(before)) <= 4, "more was begun again than what was under way"


def trained(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("runs/*/evaluation.json")}


@pytest.mark.skipif(not SOAK, reason="twelve trainings, killed half way: in soak")
def test_given_again_it_goes_on_from_checkpoints(recipe, tmp_path, started, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = f"train-sweep tiny.toml {GRID} --out sweep --no-bench --heartbeat-s 1 --tile 2"
    child = started([*RANKFOLD, *shlex.split(line)])
    wait_for(child, lambda: len(list(tmp_path.glob("sweep/runs/*/checkpoint.safetensors"))) == POINTS // 2)
    child.kill()
    child.wait()
    records = {path: path.stat().st_mtime_ns for path in tmp_path.glob("sweep/runs/*/train.json")}
    assert records
    code, out, said = call(line)
    assert code == 0, said
    sweep = Sweep.read("sweep/sweep.json")
    assert len({tuple(point.settings.items()) for point in sweep.points}) == len(sweep.points) == POINTS
    assert all(point.validation_accuracy is not None and point.macs for point in sweep.points)
    assert {path.stem for path in tmp_path.glob("sweep/models/*.onnx")} == {"dense", *(p.name for p in sweep.points)}
    assert len(Evaluation.read("sweep/evaluation.json").scores) == POINTS
    assert all(path.stat().st_mtime_ns == then for path, then in records.items())
    assert "low_rank" in out
    code, _, said = call(line.replace("tiny.toml", "tiny.toml --set optimizer.lr=0.02"))
    assert (code, said.splitlines()[-1]) == (2, "rankfold: sweep is a sweep of another recipe; choose another --out")


@pytest.mark.skipif(not SOAK, reason="two commands of two workers each: in soak")
def test_processes_share_a_study_and_make_up_for_each_other(recipe, tmp_path, started):
    line = f"train-sweep tiny.toml {GRID} --energy 0.9,1 --out sweep --pairs 2 --heartbeat-s 2 --workers 2"
    command = [*RANKFOLD, *shlex.split(line)]
    first, second = started(command), started(command)
    wait_for(first, lambda: len(trained(tmp_path / "sweep")) >= 3)
    worker = int(Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()[-1])
    subprocess.run(["kill", "-9", str(worker)], check=True)
    wait_for(first, lambda: len(trained(tmp_path / "sweep")) >= 5)
    first.send_signal(signal.SIGKILL)  # its other worker ends by itself
    assert second.wait(WAIT_S) == 0
    sweep = Sweep.read(tmp_path / "sweep" / "sweep.json")
    assert len({point.name for point in sweep.points}) == 2 * POINTS
    assert all(point.speedup is not None for point in sweep.points)
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert all(words in page for words in ("Accuracy against MACs", "Sensitivity to low_rank", "Ranks of all runs"))


@pytest.mark.parametrize("late", ["socket.gethostname", "point.done"])  # just begun; at its end
def test_a_worker_that_was_taken_for_dead_goes_on(recipe, tmp_path, monkeypatch, late):
    monkeypatch.chdir(tmp_path)
    grid = grid_of(["seed=0,1"])
    task = Task(
        recipe="tiny.toml", base=load_recipe("tiny.toml"), grid=grid, energies=[], out=Path("sweep"), data=None,
        points=points_of("tiny.toml", [], grid), storage=None, threads=1, tile=2, heartbeat_s=60,
    )  # fmt: skip
    study, took, made = opened(task), [], []

    def done(_, one, *rest):
        made.append(one.name)
        return slow() and 0.5 if late == "point.done" else 0.5

    def slow() -> str:
        for trial in study.get_trials():
            if not took and trial.state.name == "RUNNING":
                study.tell(trial.number, state=TrialState.FAIL)
                took.append(trial.number)
        return "here"

    monkeypatch.setattr("rankfold.sweep.workers.socket.gethostname", slow if late == "socket.gethostname" else str)
    monkeypatch.setattr("rankfold.sweep.workers.point.done", done)
    work(task, lambda *_: None)
    assert took
    assert set(made) == {point.name for point in task.points}
    assert Counter(trial.state.name for trial in study.get_trials()) == {"FAIL": 1, "COMPLETE": 2}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "expected --grid key=value,value or --energy with several values, found neither"),
        ("--grid lowrank=1", "no key 'lowrank'; use a path such as optimizer.lr, or one of seed, low_rank"),
        ("--grid low_rank", "expected key=value,value such as low_rank=1e-3,1e-2"),
        ("--grid low_rank=-1,0", "'regularizer.low_rank': Input should be greater than or equal to 0"),
        ("--grid seed=a,b", "expected whole numbers from 0 up"),
        ("--grid low_rank=1 low_rank=2", "names 'low_rank' twice"),
        ("--energy 0.9,2", "expected numbers above 0 and up to 1"),
        ("--grid low_rank=1 --storage nowhere://x", "check --storage and --out"),
    ],
)
def test_bad_input_is_one_line(recipe, tmp_path, monkeypatch, call, arguments, says):
    monkeypatch.chdir(tmp_path)
    code, _, said = call(f"train-sweep tiny.toml --tile 2 {arguments}")
    assert code == 2
    line = said.splitlines()[-1]
    assert line.startswith("rankfold: ")
    assert says in line
    assert not list(tmp_path.glob("**/*.onnx"))


def test_values_are_what_toml_says_each_once():
    grid = grid_of(["low_rank=1e-3,0,1e-3", "form=channel,spatial", "optimizer.lr=0.1", "relative=true"])
    assert grid == {
        "low_rank": [1e-3, 0], "form": ["channel", "spatial"], "optimizer.lr": [0.1], "relative": [True]
    }  # fmt: skip
