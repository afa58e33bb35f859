"""train --plan on the command line: from a finished run's plan to files of the planned shapes, scored beside it."""

from __future__ import annotations

import pytest

from rankfold.records import Evaluation, Plan, TrainRecord

from .train.recipes import toml


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The finished run's recipe, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text(toml().replace("steps = 30", "steps = 12"))
    return tmp_path


def test_a_plan_is_trained_exported_and_scored(finished, recipe, call):
    given = f"train recipe.toml --plan {finished.run / 'plan.json'} --from {finished.run} --set optimizer.lr=0.01"
    code, out, err = call(given)
    assert code == 0, err
    run = recipe / "runs" / "recipe-plan-0"
    record = TrainRecord.read(run / "train.json")
    assert record.start is not None
    assert record.recipe.regularizer is None
    assert record.recipe.distill is not None
    assert out.splitlines()[-1] == (
        f"{record.start.small_accuracy:.2%} before, the dense network has {record.start.dense_accuracy:.2%}"
    )
    code, out, err = call(f"export {run}")
    assert code == 0, err
    assert Plan.read(run / "plan.json").layers == Plan.read(finished.run / "plan.json").layers
    code, out, err = call(f"evaluate {run}")
    assert code == 0, err
    ours, theirs = (Evaluation.read(folder / "evaluation.json").scores for folder in (run, finished.run))
    assert [score.name for score in ours] == ["dense", "compact"]
    assert ours[0].model_sha256 == theirs[0].model_sha256

    code, _, err = call(f"{given} --set distill.weight=0 --resume")
    assert code == 2
    assert "of another recipe or seed" in err
    code, out, err = call(f"{given} --resume")
    assert code == 0, err
    assert TrainRecord.read(run / "train.json") == record
