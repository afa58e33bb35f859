"""train --plan: a planned network learns from its dense one, goes on exactly where it was, and leaves in its shapes."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from rankfold.errors import InputError
from rankfold.export.compress import Job
from rankfold.export.graphs import load
from rankfold.export.layers import layers_of
from rankfold.export.parity import run
from rankfold.export.wish import Wish, unmeasured
from rankfold.files import sha256_of
from rankfold.records import DistillSpec, Parity, Plan, PlanTiming, TrainRecord
from rankfold.stages import export_run
from rankfold.train import checkpoint, data
from rankfold.train.planned import beside, modules_of, planned, start_of
from rankfold.train.trainer import CHECKPOINT, RECORD, train

from .recipes import tiny

FINE = planned(tiny(optimizer={"lr": 0.02, "batch_size": 16, "steps": 18}))
NEARER = 0.8  # of the squared distance to the dense network's outputs: seen 0.5
SAME = 1e-5  # float32 in another order, relative to the largest output


@pytest.fixture(scope="module")
def glyphs():
    return data.load(tiny().data)


@pytest.fixture(scope="module")
def dense(tmp_path_factory, glyphs) -> Path:
    """A finished dense run, exported, and small.onnx with its plan beside it; read only."""
    folder = tmp_path_factory.mktemp("dense")
    train(tiny(regularizer=None, optimizer={"lr": 0.1, "batch_size": 16, "steps": 45}), glyphs, folder / "run")
    export_run(folder / "run", tile=1)
    np.savez(folder / "data.npz", input=glyphs.inputs(glyphs.train.images[:64]), allow_pickle=False)
    wish = Wish(forms=("channel", "spatial", "tucker-2", "linear"), macs=0.6, prune=0.2)
    Job(wish, data=folder / "data.npz").into(folder, folder / "run" / "dense.onnx", "small.onnx")
    plan = Plan.read(folder / "small.plan.json")
    timing = {"rewrites": ["means as pooling"], "fastest": 0.5, "predicted": 0.5, "screened": 0.5, "measured": 0.6}
    timed = plan.model_copy(update={"timing": PlanTiming(device="host", threads=1, verdict="fast", **timing)})
    timed.write(folder / "small.plan.json")
    small = onnx.load(folder / "small.onnx")
    next(entry for entry in small.metadata_props if entry.key == "rankfold.plan").value = timed.model_dump_json()
    onnx.save(small, folder / "small.onnx")
    assert any(layer.form != "dense" for layer in plan.layers.values())
    assert any(len(group.kept) < group.channels for group in plan.groups.values())
    return folder


@pytest.fixture(scope="module")
def trained(dense, glyphs, tmp_path_factory) -> Path:
    """A finished and exported run of that plan; read only."""
    folder = tmp_path_factory.mktemp("trained")
    train(FINE, glyphs, folder, start=started(dense, glyphs))
    export_run(folder)
    return folder


def started(dense: Path, glyphs, recipe=FINE):
    return start_of(recipe, glyphs, dense / "small.plan.json", dense / "run")


def weights(folder: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in checkpoint.load(folder / CHECKPOINT).tensors.items()}


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {layer.name: layer.shape for layer in layers_of(load(path))}


def outputs(path: Path, images: np.ndarray) -> np.ndarray:
    return run(path.read_bytes(), {"input": images})[0]


def test_it_begins_as_the_small_file_and_learns_from_the_dense_one(dense, glyphs, trained):
    start = started(dense, glyphs)
    images = glyphs.inputs(glyphs.test.images[:32])
    with torch.no_grad():
        small, teacher = (model.eval()(torch.from_numpy(images)).numpy() for model in (start.student, start.teacher))
    np.testing.assert_allclose(small, outputs(dense / "small.onnx", images), atol=1e-4)
    np.testing.assert_allclose(teacher, outputs(dense / "run" / "dense.onnx", images), atol=1e-4)
    record = TrainRecord.read(trained / RECORD)
    assert record.start is not None
    assert record.start.small_sha256 == sha256_of(dense / "small.onnx")
    assert record.start.dense_sha256 == start.dense_sha256
    assert record.recipe.distill == DistillSpec()
    assert record.parameters < sum(parameter.numel() for parameter in start.teacher.parameters())


def test_in_training_mode_it_computes_what_it_does_in_evaluation(dense, glyphs):
    """Else the first batch would be normalised into another network than the file's."""
    student, images = started(dense, glyphs).student, torch.from_numpy(glyphs.inputs(glyphs.train.images))
    with torch.no_grad():
        wanted, found = student.eval()(images), student.train()(images)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


def test_distillation_leads_to_the_dense_network_and_without_it_labels_alone_decide(dense, glyphs, tmp_path):
    starts = {name: started(dense, glyphs) for name in ("plain", "other", "distilled")}
    with torch.no_grad():
        for parameter in starts["other"].teacher.parameters():
            parameter.mul_(2)
    for name, start in starts.items():
        recipe = FINE.model_copy(update={"distill": DistillSpec(weight=float(name == "distilled"))})
        train(recipe, glyphs, tmp_path / name, start=start)
    plain, other, distilled = (start.student.state_dict() for start in starts.values())
    assert all(torch.equal(one, other[name]) for name, one in plain.items())
    images = torch.from_numpy(glyphs.inputs(glyphs.test.images[:64]))
    with torch.no_grad():
        wanted = starts["plain"].teacher(images)
        off = {name: float((start.student.eval()(images) - wanted).square().sum()) for name, start in starts.items()}
    assert off["distilled"] < NEARER * off["plain"]
    assert not all(torch.equal(one, distilled[name]) for name, one in plain.items())


class _Stop(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 9, 13])
def test_resuming_is_exact(dense, glyphs, trained, tmp_path, stop_at):
    def stop(progress):
        if progress.step == stop_at:
            raise _Stop

    with pytest.raises(_Stop, match=r"^$"):
        train(FINE, glyphs, tmp_path / "cut", start=started(dense, glyphs), on_progress=stop, checkpoint_every_s=0.0)
    record = train(FINE, glyphs, tmp_path / "cut", start=started(dense, glyphs), resume=True)
    assert weights(tmp_path / "cut") == weights(trained)
    assert record.start == TrainRecord.read(trained / RECORD).start


def test_resuming_refuses_another_start(dense, glyphs, tmp_path):
    train(FINE, glyphs, tmp_path, start=started(dense, glyphs))
    with pytest.raises(InputError, match="was begun with --plan; resume it so"):
        train(FINE, glyphs, tmp_path, resume=True)
    start = started(dense, glyphs)
    object.__setattr__(start, "dense_sha256", "0" * 64)
    with pytest.raises(InputError, match="is of another plan or dense network"):
        train(FINE, glyphs, tmp_path, start=start, resume=True)
    train(tiny(), glyphs, tmp_path / "usual")
    with pytest.raises(InputError, match="is of another recipe or seed"):
        train(FINE, glyphs, tmp_path / "usual", start=started(dense, glyphs), resume=True)


def test_export_has_the_planned_shapes_and_does_what_was_learned(dense, glyphs, trained):
    """The dense file is, to the byte, the one that the plan was made of; what was measured of another file is gone."""
    assert shapes(trained / "compact.onnx") == shapes(dense / "small.onnx")
    assert (trained / "dense.onnx").read_bytes() == (dense / "run" / "dense.onnx").read_bytes()
    assert Plan.read(trained / "plan.json") == unmeasured(Plan.read(dense / "small.plan.json"))
    checks = Parity.read(trained / "parity.json").checks
    assert all(check.passed and check.bound for check in checks if "not used" not in check.what)
    images = glyphs.inputs(glyphs.test.images[:32])
    _, small, _ = modules_of(checkpoint.load(trained / CHECKPOINT), started(dense, glyphs).teacher)
    with torch.no_grad():
        wanted = small(torch.from_numpy(images)).numpy()
    assert np.abs(outputs(trained / "compact.onnx", images) - wanted).max() < SAME * np.abs(wanted).max()
    kinds = [{node.op_type for node in onnx.load(trained / f"{name}.onnx").graph.node} for name in ("dense", "compact")]
    assert ["ReduceMean" in found for found in kinds] == [True, False]
    assert "rewrite exactly" in {check.what for check in checks}
    with pytest.raises(InputError, match="its plan decides forms and ranks; leave out --form, --energy, --parameters"):
        export_run(trained, energy=0.9)


def test_what_was_exported_can_be_trained_on(dense, glyphs, trained):
    again = start_of(FINE, glyphs, trained / "plan.json", dense / "run")
    assert {name: tuple(tensor.shape) for name, tensor in again.student.state_dict().items()} == {
        name: tuple(tensor.shape) for name, tensor in checkpoint.load(trained / CHECKPOINT).model_state().items()
    }


def test_a_recipe_that_loads_its_weights_needs_no_run(dense, glyphs, monkeypatch):
    with pytest.raises(InputError, match=r"starts with random weights \('.*'\).*with --from"):
        start_of(FINE, glyphs, dense / "small.plan.json")
    published = types.ModuleType("published")
    published.factory = lambda in_channels, classes: started(dense, glyphs).teacher  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "published", published)
    recipe = planned(tiny(model={"name": "published:factory"}))
    start = start_of(recipe, glyphs, dense / "small.plan.json")
    assert start.dense_sha256 == started(dense, glyphs).dense_sha256


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("plan", r"small.onnx was not made by .*small.plan.json; make it: rankfold compress --plan"),
        ("dense", r"small.plan.json is the plan of another file than .*dense.onnx; compress that one"),
        ("model", r"run: the checkpoint is of another network"),
        ("mean", r"run: learned with mean and std"),
        ("missing", r"cannot read .*small.onnx: No such file"),
        ("unfinished", r"cannot read .*train.json: No such file"),
        ("name", r"other.json: expected NAME.plan.json beside NAME.onnx"),
        ("weights", r"small.onnx: the file holds no weights of layer"),
    ],
)
def test_what_does_not_belong_together_is_said(dense, glyphs, tmp_path, change, says):
    folder = tmp_path / "here"
    shutil.copytree(dense, folder)
    plan, recipe = folder / "small.plan.json", FINE
    if change == "plan":
        Plan.read(plan).model_copy(update={"tile": 3}).write(plan)
    elif change == "dense":
        (folder / "run" / "dense.onnx").write_bytes(b"another")
    elif change == "model":
        recipe = FINE.model_copy(update={"model": tiny(model={"name": "dec3"}).model})
    elif change == "mean":
        recipe = FINE.model_copy(update={"data": FINE.data.model_copy(update={"mean": [0.1]})})
    elif change == "missing":
        (folder / "small.onnx").unlink()
    elif change == "unfinished":
        (folder / "run" / RECORD).unlink()
    elif change == "name":
        plan = plan.rename(folder / "other.json")
    else:
        small = onnx.load(folder / "small.onnx")
        for node in small.graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = name.replace("weight", "kernel")
        for entry in small.graph.initializer:
            entry.name = entry.name.replace("weight", "kernel")
        onnx.save(small, folder / "small.onnx")
    with pytest.raises(InputError, match=says):
        start_of(recipe, glyphs, plan, folder / "run")


def test_the_small_file_lies_beside_the_plan():
    assert beside(Path("a/small.v2.plan.json")) == Path("a/small.v2.onnx")
    assert beside(Path("run/plan.json")) == Path("run/compact.onnx")
