"""The benchmark of planned networks: what identifies a row, where networks are scored, how it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rankfold.benchmarks import planned
from rankfold.files import sha256_of
from rankfold.records import LayerDecision, Plan, PlannedRow

Main = Callable[..., tuple[int, str, str]]


class Far(nn.Linear):
    """Comes back from a device that holds no numbers."""

    def to(self, *args: Any, **kwargs: Any) -> Far:
        return self.to_empty(device=args[0])


def trained(recipe: Any, data: Any, folder: Path, *, start: Any, **_: Any) -> SimpleNamespace:
    """As on a machine with a GPU: the network stays on it."""
    start.student.to(torch.device("meta"))
    return SimpleNamespace(train_s=1.0)


def scored(model: nn.Module, data: Any, part: Any, device: torch.device) -> tuple[float, float]:
    assert {one.device for one in model.parameters()} == {device}
    return 0.0, 0.5


@pytest.fixture
def main(tmp_path: Path, monkeypatch, capsys) -> Main:
    """The command on two published networks, one.th and other.th, that takes no time."""
    plan = tmp_path / "small.plan.json"
    Plan(tile=1, layers={"a": LayerDecision(form="dense", reason="", macs=1, macs_dense=2)}).write(plan)
    (tmp_path / "one.th").write_bytes(b"one")
    (tmp_path / "other.th").write_bytes(b"other")
    monkeypatch.setattr(planned, "cifar", lambda path: SimpleNamespace(validation=range(10), test=range(20)))
    monkeypatch.setattr(planned, "compressed", lambda *_: plan)
    monkeypatch.setattr(planned, "start_of", lambda *_: SimpleNamespace(student=Far(1, 1), teacher=Far(1, 1)))
    monkeypatch.setattr(planned, "train", trained)
    monkeypatch.setattr(planned, "evaluate", scored)

    def run(weights: str, *options: str) -> tuple[int, str, str]:
        given = ["resnet20", str(tmp_path / weights), "cifar10.npz", "--results", str(tmp_path / "rows.jsonl")]
        monkeypatch.setattr(sys, "argv", ["planned", *given, "--seeds", "0", *options])
        code: Any = 0
        try:
            planned.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def test_rows_are_of_their_weights_and_of_the_validation_part_unless_asked(main, tmp_path):
    def rows() -> list[PlannedRow]:
        return [PlannedRow.model_validate_json(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]

    code, out, err = main("one.th")
    assert code == 0, err
    assert out.splitlines()[-1] == "distillation gains +0.00 points (seed 0: +0.00)"
    assert [(row.split, row.n, row.weight) for row in rows()] == [("validation", 10, 0.0), ("validation", 10, 0.9)]
    assert {row.weights_sha256 for row in rows()} == {sha256_of(tmp_path / "one.th")}
    main("one.th")
    assert len(rows()) == 2
    main("one.th", "--split", "test")
    assert [(row.split, row.n) for row in rows()[2:]] == [("test", 20)] * 2
    main("other.th")
    assert {row.weights_sha256 for row in rows()[4:]} == {sha256_of(tmp_path / "other.th")}


def test_a_weight_of_nothing_and_missing_weights_are_one_line(main):
    for weights, options, says in (
        ("one.th", ["--weight", "0"], "--weight: expected a share in (0, 1], found 0; 0 is trained beside it"),
        ("nowhere.th", [], "nowhere.th: No such file or directory; check the path"),
    ):
        code, _, err = main(weights, *options)
        assert code == 2
        assert err.startswith("rankfold: ")
        assert err.endswith(f"{says}\n")


def test_ctrl_c_is_one_line(main, monkeypatch):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(planned, "train", interrupted)
    assert main("one.th")[::2] == (
        130,
        "rankfold: interrupted; rows are kept, and with --work a run goes on where it was\n",
    )
