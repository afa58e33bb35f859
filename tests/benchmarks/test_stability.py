"""The benchmark of stability: what is a collapse, which trainings are asked for, and one that collapses."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from rankfold.benchmarks import stability
from rankfold.benchmarks.stability import Job, collapsed_at, markdown, trained
from rankfold.records import StabilityRow
from rankfold.train import data

from ..train.recipes import tiny, toml


def row(accuracies: list[float], **changes: Any) -> StabilityRow:
    given = {
        "recipe": "r",
        "way": "folded",
        "strength": 0.1,
        "guard": False,
        "config_hash": "0" * 12,
        "seed": 0,
        "n": 1000,
        "chance": 0.1,
        "accuracies": accuracies,
        "ranks": 0.5,
        "smallest": 0.1,
        "events": [],
        "diverged": None,
        "train_s": 1.0,
    }
    return StabilityRow.model_validate(given | changes)


@pytest.mark.parametrize(
    ("accuracies", "diverged", "epoch"),
    [
        ([0.5, 0.8], None, None),
        ([0.5, 0.1, 0.12], None, 2),
        ([0.1, 0.1], None, 1),
        ([0.1, 0.5, 0.1, 0.6], None, None),
        ([0.5, 0.6], "the loss is nan", 3),
        ([], "the loss is nan", 1),
    ],
)
def test_a_collapse_is_accuracy_at_chance_until_the_end(accuracies, diverged, epoch):
    assert collapsed_at(row(accuracies, diverged=diverged)) == epoch


def test_seeds_are_taken_together_and_dense_is_not_regularised(tmp_path):
    rows = [row([0.5, 0.8]), row([0.5, 0.1], seed=1), row([0.9], strength=0.0, config_hash="1" * 12, ranks=None)]
    lines = markdown(rows).splitlines()
    assert lines[2].startswith("| r | dense | 0 | off | 1 | 90.00 | 90.00 |  | 10 % |")
    assert lines[3].startswith(
        "| r | folded | 0.1 | off | 2 | 45.00 ± 49.50 | 65.00 ± 21.21 | 50 % | 10 % | 1 of 2, from"
    )
    assert Job("glyphs-dec3", (), "naive", 0.0, True, 0, tmp_path).made().regularizer is None


def test_a_strength_far_too_large_collapses_and_the_guard_speaks_before_it_does(tmp_path):
    (tmp_path / "tiny.toml").write_text(toml().replace("steps = 30", "steps = 12"))
    glyphs = data.load(tiny().data)
    for guard in (False, True):
        job = Job(str(tmp_path / "tiny.toml"), (), "folded", 100.0, guard, 0, tmp_path)
        found = trained(job, glyphs, lambda _: None)
        assert found.ranks is not None
        if guard:
            assert found.events[0].step == 10
            assert "its rank would fall to 0" in found.events[0].what
        else:
            assert found.events == []
            assert collapsed_at(found) is not None


def test_the_command_skips_what_has_its_row_and_refuses_in_one_line(tmp_path, monkeypatch, capsys):
    asked: list[list[Job]] = []
    monkeypatch.setattr(stability, "run", lambda jobs, *_: asked.append(jobs) or [])

    def main(*options: str) -> int:
        line = ["run", "glyphs-dec3", "--work", str(tmp_path), "--results", str(tmp_path / "rows.jsonl"), *options]
        monkeypatch.setattr(sys, "argv", ["stability", *line])
        try:
            stability.main()
        except SystemExit as stop:
            return int(str(stop.code))
        return 0

    assert main("--strengths", "0", "0.1", "--ways", "folded", "naive", "--seeds", "0", "1") == 0
    assert len(asked[0]) == 2 * (1 + 4)  # dense once a seed
    known = asked[0][-1]
    (tmp_path / "rows.jsonl").write_text(
        row([0.5], config_hash=known.config_hash, seed=known.seed).model_dump_json() + "\n"
    )
    assert main("--strengths", "0", "0.1", "--ways", "folded", "naive", "--seeds", "0", "1") == 0
    assert asked[1] == asked[0][:-1]
    assert main("--strengths", "-1") == 2
    assert capsys.readouterr().err == "rankfold: --strengths: expected 0 or more, found -1.0\n"
