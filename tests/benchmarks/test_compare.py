"""A tiny comparison from end to end: killed, resumed, repeated, changed, and asked for too much."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rankfold.benchmarks.compare import main
from rankfold.records import Bench, Evaluation, ResultRow

from ..conftest import SOAK
from ..train.recipes import toml

_PATIENCE_S = 120.0  # until a child has saved something; a slow machine imports torch for half a minute
STEPS = 100  # a training that is not done before Ctrl-C has reached it
MODULE = (sys.executable, "-P", "-m", "rankfold.benchmarks.compare")
OPTIONS = ("spec.toml", "--out", "out", "--jobs", "2", "--pairs", "2", "--results", "rows.jsonl")
NAMES = ["dense", "compact", "svd"]
SPEC = """
format = 1
about = "three tiny networks"
compact = "compact"
[claim]
dense_accuracy = 0
within = 1
speedup = 0.001
[[variants]]
name = "dense"
recipe = "recipe.toml"
changes = ["regularizer.low_rank=0", "regularizer.group=0"]
[[variants]]
name = "compact"
recipe = "recipe.toml"
write = "compact"
[[variants]]
name = "svd"
trained_by = "dense"
write = "compact"
parameters_of = "compact"
"""
# a spec's change, and what the one line must say
BAD = [
    ("format = 1", "format = 2", "'format'"),
    ('compact = "compact"', 'compact = "small"', "compact names no variant but the baseline: small"),
    ('compact = "compact"', 'compact = "dense"', "compact names no variant but the baseline: dense"),
    ('name = "svd"', 'name = "dense"', "two variants have the same name"),
    ('trained_by = "dense"', 'trained_by = "svd"', "svd: trained_by names no variant with a recipe: svd"),
    ('trained_by = "dense"', "", "give exactly one of recipe and trained_by"),
    ('parameters_of = "compact"', 'parameters_of = "svd"', "svd: parameters_of names no variant: svd"),
    ('parameters_of = "compact"', "energy = 2", "'variants.2.energy'"),
    ('write = "compact"', 'written = "compact"', "unknown key 'variants.1.written'"),
    ('name = "svd"', 'name = "../svd"', "'variants.2.name'"),
    ("speedup = 0.001", "speedup = 0", "'claim.speedup'"),
    ('recipe = "recipe.toml"', 'recipe = "missing.toml"', "cannot read recipe missing.toml"),
    ("low_rank=0", "low_rnk=0", "unknown key 'regularizer.low_rnk'"),
    ("about", "about about", "spec.toml: not TOML"),
]


def prepare(place: Path) -> None:
    (place / "recipe.toml").write_text(toml().replace("steps = 30", f"steps = {STEPS}"))
    (place / "spec.toml").write_text(SPEC)


def start(place: Path, *options: str) -> subprocess.Popen[str]:
    """The comparison in its own process group, which stands for a terminal's."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*MODULE, *OPTIONS, *options], cwd=place, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def stop_in_training(place: Path, number: signal.Signals, *options: str) -> tuple[int, str]:
    """Start a comparison and send the whole group a signal once an epoch is saved: exit code, stderr."""
    child = start(place, *options)
    deadline_s = time.monotonic() + _PATIENCE_S
    try:
        while not list(place.glob("out/runs/*/metrics.jsonl")):
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < deadline_s, "no epoch was saved"
            time.sleep(0.01)
        os.killpg(child.pid, number)
        _, err = child.communicate(timeout=_PATIENCE_S)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()  # else pytest finds it unended, in the middle of another test
    return child.returncode, err


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> tuple[Path, int, str, set[str]]:
    """A comparison that had Ctrl-C in training: its folder, exit code, stderr, and what it left of its runs."""
    place = tmp_path_factory.mktemp("compared")
    prepare(place)
    code, err = stop_in_training(place, signal.SIGINT)
    return place, code, err, {path.name for path in place.glob("out/runs/*/*")}


@pytest.fixture(scope="module")
def compared(interrupted) -> Path:
    """The same, started again and finished."""
    place = interrupted[0]
    before = {path: path.read_bytes() for path in place.glob("out/runs/*/metrics.jsonl")}
    assert not (place / "out" / "models").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("rankfold.runtime.turns._PAIR_S", 0.1)
        assert run_here(*OPTIONS) == 0
    assert all(path.read_bytes().startswith(epochs) for path, epochs in before.items()), "it did not go on"
    return place


def run_here(*arguments: str) -> int:
    """The command line in this process: its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compare", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.fixture
def call(capfd) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        return run_here(*arguments), *capfd.readouterr()

    return run


def times(folder: Path) -> dict[str, int]:
    """When each file below a folder was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def rows(place: Path) -> list[ResultRow]:
    return [ResultRow.model_validate_json(line) for line in (place / "rows.jsonl").read_text().splitlines()]


def write_rows(place: Path, rows: list[ResultRow]) -> None:
    (place / "rows.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))


def test_a_comparison_ends_with_every_record(compared):
    out = compared / "out"
    bench, evaluation = Bench.read(out / "bench.json"), Evaluation.read(out / "evaluation.json")
    assert [variant.name for variant in bench.variants] == NAMES
    assert {(score.name, score.split) for score in evaluation.scores} == {
        (name, split) for name in NAMES for split in ("validation", "test")
    }
    assert {score.model_sha256 for score in evaluation.scores} == {variant.sha256 for variant in bench.variants}
    assert (out / "report.html").exists()
    assert {path.name for path in (out / "runs").iterdir()} == {"dense", "compact"}
    assert not list(out.rglob(".*"))
    _, compact, svd = bench.variants
    assert svd.parameters is not None
    assert compact.parameters is not None
    assert svd.parameters <= compact.parameters


def test_the_same_again_trains_exports_scores_and_measures_nothing(compared, call, monkeypatch):
    monkeypatch.chdir(compared)
    before, known = times(compared / "out"), rows(compared)
    write_rows(compared, known[:-1])  # with all its rows it would be skipped as a whole
    code, _, err = call(*OPTIONS)
    assert (code, err) == (0, "")
    after = times(compared / "out")
    written = {name for name in after if after[name] != before.get(name)}
    assert {name for name in written if not name.startswith(("report.", "dashboard."))} == set()
    assert rows(compared) == known
    assert [row.variant for row in known] == NAMES


def test_a_row_that_is_missing_is_made_and_the_others_stay(compared, call, monkeypatch):
    monkeypatch.chdir(compared)
    true = rows(compared)
    other = true[0].model_copy(update={"seed": 7})
    write_rows(compared, [*true[1:], other])
    assert call(*OPTIONS)[0] == 0
    assert rows(compared) == [*true[1:], other, true[0]]
    write_rows(compared, true)


def test_a_seed_with_all_its_rows_is_not_done_again(compared, call, monkeypatch):
    monkeypatch.chdir(compared)
    before = {path.name for path in compared.iterdir()}
    write_rows(compared, [row.model_copy(update={"seed": seed}) for seed in (0, 3) for row in rows(compared)])
    code, out, err = call(*OPTIONS[:2], "elsewhere", *OPTIONS[3:], "--seeds", "0", "3")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"rows.jsonl has every row of seed {seed}; delete them to measure again" for seed in (0, 3)
    ]
    assert {path.name for path in compared.iterdir()} - before <= {"elsewhere"}
    assert not list((compared / "elsewhere").rglob("*.*"))


def test_a_claim_that_is_missed_is_exit_1(compared, call, monkeypatch):
    monkeypatch.chdir(compared)
    before = times(compared / "out" / "models")
    (compared / "much.toml").write_text(SPEC.replace("speedup = 0.001", "speedup = 1000"))
    code, out, err = call("much.toml", *OPTIONS[1:-2])
    assert code == 1
    assert_one_line(err, "expected a speed-up whose interval lies above 1000")
    assert "report.html" in out
    assert times(compared / "out" / "models") == before


@pytest.mark.parametrize(("old", "new", "says"), BAD, ids=[row[2] for row in BAD])
def test_a_bad_spec_is_one_line(tmp_path, call, monkeypatch, old, new, says):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    (tmp_path / "spec.toml").write_text(SPEC.replace(old, new, 1))
    code, out, err = call(*OPTIONS)
    assert (code, out) == (2, "")
    assert_one_line(err, says)
    assert not list((tmp_path / "out").rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("spec.toml",), "the following arguments are required: --out"),
        (("no-such", "--out", "out"), "cannot read comparison .*no-such.toml"),
        ((*OPTIONS, "--jobs", "0"), "--jobs: expected a whole number from 1 up, found '0'"),
        ((*OPTIONS, "--pairs", "1"), "--pairs: expected a whole number from 2 up"),
        ((*OPTIONS, "--seeds", "-1"), "--seeds"),
        ((*OPTIONS, "--out", "recipe.toml"), "cannot write recipe.toml/bench.json"),
        ((*OPTIONS, "--results", "."), "cannot write .: Is a directory"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, call, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert_one_line(err, says)


def test_rows_that_are_none_are_refused_by_name(compared, call, monkeypatch, tmp_path):
    monkeypatch.chdir(compared)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"format": 1, "colour": "red"}) + "\n")
    code, _, err = call(*OPTIONS[:-1], str(path))
    assert code == 2
    assert_one_line(err, f"{path}: unknown key 'colour'")
    assert "red" in path.read_text()


def test_ctrl_c_ends_the_workers_too_in_one_line(interrupted):
    """A terminal sends SIGINT to the whole group, workers included."""
    _, code, err, left = interrupted
    assert code == 130
    assert_one_line(err, "interrupted; the same command goes on where it was")
    assert left <= {"checkpoint.safetensors", "metrics.jsonl"}


@pytest.mark.skipif(not SOAK, reason="another comparison, killed by SIGKILL in place of Ctrl-C: in soak")
def test_a_killed_comparison_goes_on(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    assert stop_in_training(tmp_path, signal.SIGKILL)[0] == -signal.SIGKILL
    assert not (tmp_path / "out" / "models").exists()
    code, out, err = call(*OPTIONS)
    assert code == 0, err
    assert "compact is " in out.splitlines()[-1]


def assert_one_line(err: str, says: str) -> None:
    """Exactly one line on stderr, and it says so."""
    (line,) = err.splitlines()
    assert line.startswith("rankfold: ")
    assert re.search(says, line), line
