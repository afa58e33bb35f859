"""train --plan: a planned network learns from its dense one, goes on exactly where it was, and leaves in its shapes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from rankfold.errors import InputError
from rankfold.export.compress import Job, Wish
from rankfold.export.graphs import load
from rankfold.export.layers import layers_of
from rankfold.export.parity import run
from rankfold.files import sha256_of
from rankfold.records import DistillSpec, Parity, Plan, PlanTiming, TrainRecord
from rankfold.stages import export_run
from rankfold.train import checkpoint, data
from rankfold.train.planned import beside, modules_of, planned, start_of
from rankfold.train.trainer import CHECKPOINT, RECORD, train

from .recipes import tiny

FINE = planned(tiny(optimizer={"lr": 0.02, "batch_size": 16, "steps": 18}))
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
    assert any(layer.form != "dense" for layer in plan.layers.values())
    assert any(len(group.kept) < group.channels for group in plan.groups.values())
    return folder


def started(dense: Path, glyphs, recipe=FINE):
    return start_of(recipe, glyphs, dense / "small.plan.json", dense / "run")


def weights(folder: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in checkpoint.load(folder / CHECKPOINT).tensors.items()}


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {layer.name: layer.shape for layer in layers_of(load(path))}


def outputs(path: Path, images: np.ndarray) -> np.ndarray:
    return run(path.read_bytes(), {"input": images})[0]


def test_it_begins_as_the_small_file_and_learns_from_the_dense_network(dense, glyphs, tmp_path):
    start = started(dense, glyphs)
    images = glyphs.inputs(glyphs.test.images[:32])
    with torch.no_grad():
        small = start.student.eval()(torch.from_numpy(images)).numpy()
        teacher = start.teacher(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(small, outputs(dense / "small.onnx", images), atol=1e-4)
    np.testing.assert_allclose(teacher, outputs(dense / "run" / "dense.onnx", images), atol=1e-4)

    record = train(FINE.model_copy(update={"distill": DistillSpec(weight=1.0)}), glyphs, tmp_path, start=start)
    assert record == TrainRecord.read(tmp_path / RECORD)
    assert record.start is not None
    assert record.start.small_sha256 == sha256_of(dense / "small.onnx")
    assert record.parameters < sum(parameter.numel() for parameter in start.teacher.parameters())
    with torch.no_grad():
        learned = start.student.eval()(torch.from_numpy(images)).numpy()
    assert np.square(learned - teacher).sum() < 0.9 * np.square(small - teacher).sum()


def test_without_distillation_the_labels_alone_decide(dense, glyphs, tmp_path):
    plain = FINE.model_copy(update={"distill": DistillSpec(weight=0.0)})
    other = started(dense, glyphs)
    with torch.no_grad():
        for parameter in other.teacher.parameters():
            parameter.mul_(2)
    for name, recipe, start in (
        ("plain", plain, started(dense, glyphs)),
        ("other", plain, other),
        ("distilled", FINE, started(dense, glyphs)),
    ):
        train(recipe, glyphs, tmp_path / name, start=start)
    models = [checkpoint.load(tmp_path / name / CHECKPOINT).model_state() for name in ("plain", "other", "distilled")]
    assert all(torch.equal(one, models[1][name]) for name, one in models[0].items())
    assert not all(torch.equal(one, models[2][name]) for name, one in models[0].items())


class _Stop(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 9, 13])
def test_resuming_is_exact(dense, glyphs, tmp_path, stop_at):
    def stop(progress):
        if progress.step == stop_at:
            raise _Stop

    with pytest.raises(_Stop, match=r"^$"):
        train(FINE, glyphs, tmp_path / "cut", start=started(dense, glyphs), on_progress=stop, checkpoint_every_s=0.0)
    record = train(FINE, glyphs, tmp_path / "cut", start=started(dense, glyphs), resume=True)
    whole = train(FINE, glyphs, tmp_path / "whole", start=started(dense, glyphs))
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert record.start == whole.start


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


def test_export_has_the_planned_shapes_and_does_what_was_learned(dense, glyphs, tmp_path):
    """The dense file is, to the byte, the one that the plan was made of."""
    train(FINE, glyphs, tmp_path, start=started(dense, glyphs))
    plan = export_run(tmp_path)
    assert shapes(tmp_path / "compact.onnx") == shapes(dense / "small.onnx")
    assert (tmp_path / "dense.onnx").read_bytes() == (dense / "run" / "dense.onnx").read_bytes()
    assert plan == Plan.read(tmp_path / "plan.json") == Plan.read(dense / "small.plan.json")
    checks = Parity.read(tmp_path / "parity.json").checks
    assert all(check.passed and check.bound for check in checks if "not used" not in check.what)
    assert {path.name for path in tmp_path.iterdir()} >= {"dense.onnx", "compact.onnx", "plan.json", "train.json"}
    images = glyphs.inputs(glyphs.test.images[:32])
    stored = checkpoint.load(tmp_path / CHECKPOINT)
    _, small, _ = modules_of(stored, started(dense, glyphs).teacher)
    with torch.no_grad():
        wanted = small(torch.from_numpy(images)).numpy()
    assert np.abs(outputs(tmp_path / "compact.onnx", images) - wanted).max() < SAME * np.abs(wanted).max()


def test_exported_it_can_be_trained_on(dense, glyphs, tmp_path):
    train(FINE, glyphs, tmp_path / "first", start=started(dense, glyphs))
    export_run(tmp_path / "first")
    again = start_of(FINE, glyphs, tmp_path / "first" / "plan.json", dense / "run")
    train(FINE, glyphs, tmp_path / "second", start=again)


def test_exact_rewrites_of_the_plan_are_made(dense, glyphs, tmp_path):
    """ResNet's shortcuts and its mean, which the exporter writes as Slice, Pad and ReduceMean."""
    from rankfold.export.from_torch import to_onnx
    from rankfold.export.shrink import carry_out, prepare_dense
    from rankfold.train.models import resnet20

    torch.manual_seed(0)
    to_onnx(resnet20(3, 10, widths=(4, 8, 8)).eval(), torch.zeros(2, 3, 16, 16), tmp_path / "trained.onnx")
    prepare_dense(tmp_path / "trained.onnx", tmp_path / "dense.onnx")
    rewrites = ["shortcuts as strided convolutions", "means as pooling"]
    timing = PlanTiming(device="host", threads=1, rewrites=rewrites, fastest=0.5, predicted=0.5, screened=0.5)
    files = (tmp_path / "trained.onnx", tmp_path / "dense.onnx", tmp_path / "compact.onnx")
    parity = carry_out(*files, Plan(tile=1, timing=timing))
    kinds = {node.op_type for node in onnx.load(tmp_path / "compact.onnx").graph.node}
    assert "GlobalAveragePool" in kinds
    assert not kinds & {"Slice", "Pad", "ReduceMean"}
    assert {"Slice", "Pad"} <= {node.op_type for node in onnx.load(tmp_path / "dense.onnx").graph.node}
    assert "rewrite exactly" in {check.what for check in parity.checks if check.passed}


def test_a_recipe_that_loads_its_weights_needs_no_run(dense, glyphs, tmp_path):
    with pytest.raises(InputError, match=r"starts with random weights \('.*'\).*with --from"):
        start_of(FINE, glyphs, dense / "small.plan.json")
    before = torch.random.get_rng_state()
    name = {"name": "rankfold_test_published:factory"}
    import sys
    import types

    module = types.ModuleType("rankfold_test_published")
    module.factory = lambda in_channels, classes: started(dense, glyphs).teacher  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["rankfold_test_published"] = module
    try:
        start = start_of(planned(tiny(model=name)), glyphs, dense / "small.plan.json")
    finally:
        del sys.modules["rankfold_test_published"]
    assert start.dense_sha256 == started(dense, glyphs).dense_sha256
    assert torch.equal(before, torch.random.get_rng_state())


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
