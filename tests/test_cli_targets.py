"""train --target-… on the command line: what is missed is said, what makes no sense is refused."""

from __future__ import annotations

import pytest

from rankfold.records import TrainRecord
from rankfold.train.recipe import aimed

from .train.recipes import tiny, toml


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A tiny recipe in a folder of its own, and the run folder that it gets."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text(toml().replace("steps = 30", "steps = 12"))
    return tmp_path / "runs" / "recipe-0"


def test_a_target_that_is_missed_is_said_recorded_and_exit_code_1(run, call, caplog):
    code, out, err = call("train recipe.toml --target-macs 0.01 --set regularizer.tile=1")
    assert code == 1, err
    assert "1.0% were wanted; see what has to stay" in caplog.messages[-1]  # on stderr where nobody catches it
    record = TrainRecord.read(run / "train.json")
    assert record.target is not None
    assert 0.01 < record.target.reached < 0.5
    assert record.target.held_from is None
    assert out.splitlines()[-1] == f"of the dense macs {record.target.reached:.1%} are left, 1.0% wanted"
    assert (record.epochs[-1].strength or 0) > 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--target-macs 0.5 --target-params 0.5", "give one of --target-macs, --target-params and --target-latency"),
        ("--target-macs 0.5 --plan small.plan.json", "and no --plan with it"),
        ("--target-latency 0.5", "target_latency needs a table (rankfold latency-table show -o)"),
        ("--target-macs 0.5 --set regularizer.hold_from=0", "a target needs hold_at"),
    ],
)
def test_targets_that_make_no_sense_are_refused(run, call, options, says):
    code, _, err = call(f"train recipe.toml {options}")
    assert code == 2
    assert says in err


def test_a_recipe_is_aimed_with_its_own_strengths_or_with_ours():
    own = aimed(tiny(regularizer={"low_rank": 0.2, "hold_macs": 0.5}), "params", 0.3).regularizer
    assert own is not None
    assert (own.low_rank, own.group, own.hold_macs, own.target_params) == (0.2, 0.0, None, 0.3)
    ours = aimed(tiny(regularizer=None), "macs", 0.3).regularizer
    assert ours is not None
    assert (ours.relative, ours.low_rank, ours.group, ours.target_macs) == (True, 0.01, 1.0, 0.3)
    assert ours.start_at > 0
