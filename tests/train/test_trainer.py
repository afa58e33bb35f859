"""The loop: it learns, it repeats itself to the byte, and a killed run ends where an unkilled one does."""

from __future__ import annotations

import random
import signal
import time

import pytest
import torch

from rankfold.errors import InputError
from rankfold.options import recipe_changes
from rankfold.records import TrainRecord
from rankfold.train import checkpoint, data
from rankfold.train.recipe import load_recipe
from rankfold.train.trainer import CHECKPOINT, METRICS, RECORD, belongs, learning_rate, train

from ..children import started
from .recipes import tiny, toml

KILL_SEED = 20
LEARNED = 0.05  # of a cross-entropy that starts at ln 36 = 3.58: seen 0.10, and 0 for a loop that does not learn


@pytest.fixture(scope="module")
def glyphs():
    return data.load(tiny().data)


def weights(folder):
    return {name: value.numpy().tobytes() for name, value in checkpoint.load(folder / CHECKPOINT).tensors.items()}


def test_leaves_the_records_and_learns(tmp_path, glyphs):
    recipe = tiny(regularizer=None, optimizer={"lr": 0.05, "batch_size": 16, "epochs": 6})
    seen = []
    record = train(recipe, glyphs, tmp_path, on_progress=seen.append)
    assert TrainRecord.read(tmp_path / RECORD) == record
    assert len((tmp_path / METRICS).read_text().splitlines()) == 6
    assert record.steps == 6 * 9 == seen[-1].step
    assert seen[-1].left_s == 0
    assert record.epochs[-1].train_loss < record.epochs[0].train_loss - LEARNED
    assert record.validation_indices == (0, len(glyphs.validation))


def test_regularized_run_logs_ranks_and_ends_small(tmp_path, glyphs):
    record = train(tiny(), glyphs, tmp_path)
    last = {layer.name: layer for layer in record.epochs[-1].layers}
    first = {layer.name: layer for layer in record.epochs[0].layers}
    assert sum(layer.rank for layer in last.values()) < sum(layer.full_rank for layer in last.values())
    assert first.keys() == last.keys() >= {"conv1v", "conv3h", "fc"}
    assert record.epochs[-1].penalty is not None


def test_same_seed_same_bytes_and_other_seed_others(tmp_path, glyphs):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tiny(), glyphs, tmp_path / name, seed=seed)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


class _Stop(Exception):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory, glyphs):
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train(tiny(), glyphs, folder)
    return folder


@pytest.mark.parametrize("stop_at", [1, 9, 13, 18, 19, 29])
def test_resuming_from_any_step_is_exact(tmp_path, glyphs, whole, stop_at):
    """With a checkpoint at every step, the run is cut in this process; the kill -9 test cuts real ones."""

    def stop(progress):
        if progress.step == stop_at:
            raise _Stop

    with pytest.raises(_Stop, match=r"^$"):
        train(tiny(), glyphs, tmp_path / "cut", on_progress=stop, checkpoint_every_s=0.0)
    assert not (tmp_path / "cut" / RECORD).exists()
    train(tiny(), glyphs, tmp_path / "cut", resume=True)
    assert weights(tmp_path / "cut") == weights(whole)


def test_killed_and_resumed_ends_with_the_same_bytes(tmp_path, counts):
    recipe = tmp_path / "tiny.toml"
    moments = counts(1, 20)
    recipe.write_text(toml().replace("steps = 30", f"steps = {100 * moments}"))

    def training(name, *options):
        return started(["train", str(recipe), "--out", name, "--threads", "1", *options], tmp_path)

    def finish(name, *options):
        with training(name, *options) as child:
            assert child.wait() == 0, child.said("err")

    finish("whole")
    rng = random.Random(KILL_SEED)
    path = tmp_path / "cut" / CHECKPOINT
    for _ in range(moments):
        before = path.stat().st_mtime_ns if path.exists() else 0
        with training("cut", "--resume") as child:
            child.wait_for(lambda before=before: path.exists() and path.stat().st_mtime_ns > before)
            time.sleep(rng.uniform(0, 0.3))
            assert child.stop(signal.SIGKILL) == -signal.SIGKILL
        checkpoint.load(path)  # whole, whenever it was killed
    finish("cut", "--resume")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_resume_refuses_another_recipe_or_seed(tmp_path, glyphs):
    train(tiny(), glyphs, tmp_path, seed=1)
    with pytest.raises(InputError, match="of another recipe or seed"):
        train(tiny(), glyphs, tmp_path, seed=2, resume=True)


def test_a_checkpoint_belongs_to_its_recipe_whatever_keys_came_later():
    recipe = tiny().model_dump(mode="json")
    assert belongs({"recipe": recipe, "seed": 1}, tiny(), 1)
    del recipe["distill"], recipe["regularizer"]["table"]
    assert belongs({"recipe": recipe, "seed": 1}, tiny(), 1)
    assert not belongs({"recipe": recipe | {"about": "another"}, "seed": 1}, tiny(), 1)
    assert not belongs({"recipe": recipe | {"misspelt": 1}, "seed": 1}, tiny(), 1)
    assert not belongs({"recipe": recipe, "seed": 2}, tiny(), 1)


def test_divergence_names_the_step(tmp_path, glyphs):
    wild = tiny(optimizer={"lr": 1e30, "batch_size": 16, "steps": 30})
    with pytest.raises(Exception, match=r"(the loss is (nan|inf) at step \d+|NaN or infinity)"):
        train(wild, glyphs, tmp_path)


def test_schedule():
    spec = tiny().optimizer.model_copy(update={"lr": 1.0, "warmup_share": 0.1})
    rates = [learning_rate(spec, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(1.0, abs=0.1)
    assert rates[0] < rates[5] < rates[9]
    assert rates[99] < 0.01
    steps = spec.model_copy(update={"schedule": "step", "warmup_share": 0.0})
    assert [round(learning_rate(steps, step, 100), 6) for step in (0, 49, 50, 75)] == [1.0, 1.0, 0.1, 0.01]
    three = steps.model_copy(update={"milestones": [0.3, 0.6, 0.8]})
    assert [round(learning_rate(three, step, 100), 6) for step in (29, 30, 60, 80)] == [1.0, 0.1, 0.01, 0.001]


def test_packaged_recipes_load():
    from rankfold.train.recipe import packaged

    assert {"glyphs-dec3", "glyphs-dec3-compact", "chars74k-dec3"} <= set(packaged())
    assert {"cifar10-resnet20", "cifar10-resnet56", "imagenet-resnet50", "imagenet-dec8"} <= set(packaged())
    for name in packaged():
        assert load_recipe(name).promise.measured_on


def test_set_changes_one_key():
    recipe = load_recipe("glyphs-dec3", ["optimizer.lr=0.05", "regularizer.low_rank=1e-3", "about=hello there"])
    assert (recipe.optimizer.lr, recipe.about) == (0.05, "hello there")
    assert recipe.regularizer is not None
    assert recipe.regularizer.low_rank == 1e-3
    with pytest.raises(InputError, match=r"unknown key .optimizer\.lrr."):
        load_recipe("glyphs-dec3", ["optimizer.lrr=0.05"])
    with pytest.raises(InputError, match="expected key=value"):
        load_recipe("glyphs-dec3", ["optimizer.lr"])


def test_another_model_and_its_weights_on_the_command_line(tmp_path):
    changes = recipe_changes("torchvision.models:resnet18", tmp_path / 'a "b".pth', ["model.arguments.progress=false"])
    recipe = load_recipe("glyphs-dec3", changes)
    assert recipe.model.name == "torchvision.models:resnet18"
    assert recipe.model.arguments == {"weights": str(tmp_path / 'a "b".pth'), "progress": False}
    assert load_recipe("glyphs-dec3", recipe_changes(None, None, None)).model.arguments == {"width": 0.5}


def test_checkpoint_refuses_foreign_and_truncated_files(tmp_path, glyphs):
    train(tiny(), glyphs, tmp_path)
    path = tmp_path / CHECKPOINT
    whole = path.read_bytes()
    for broken in (b"", whole[:100], whole[:-10], b"\x80\x04pickle", whole[8:]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="truncated or not a checkpoint"):
            checkpoint.load(path)
    path.write_bytes(whole)
    with pytest.raises(InputError, match="of another network"):
        checkpoint.restore(checkpoint.load(path), torch.nn.Linear(2, 2))
