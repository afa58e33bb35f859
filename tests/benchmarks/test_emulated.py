"""The demo's networks on aarch64: dense, compact and int8 put out there what they put out here."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rankfold.benchmarks.networks import load_spec, networks_of
from rankfold.records import Bench, Plan, Recipe
from rankfold.stages import COMPACT, DENSE, export_run
from rankfold.train import data
from rankfold.train.trainer import train

from ..conftest import SOAK
from ..emulation import emulated

STEPS = 8  # in check; in soak the recipe's own
FLAT = 30  # so much stronger must thresholds be for ranks to fall: what is not trained has singular values all alike
DEVICES = ("qemu-cortex-a72", "qemu-cortex-a76")


def shortened(recipe: Recipe) -> Recipe:
    """A recipe that takes a second. It shrinks the network as far as the whole one does: by as much more a step."""
    spec, regularizer = recipe.optimizer, recipe.regularizer
    assert spec.steps is not None
    more = spec.steps / STEPS
    changes = {
        "optimizer": spec.model_copy(update={"steps": STEPS, "batch_size": 16}),
        "data": recipe.data.model_copy(update={"train_size": 144, "test_size": 72}),
        "regularizer": regularizer
        and regularizer.model_copy(
            update={"low_rank": FLAT * more * regularizer.low_rank, "group": more * regularizer.group, "every": 1}
        ),
    }
    return recipe.model_copy(update=changes)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with dense.onnx and compact.onnx, the plan and images.npz. Both are of the compact network's training in
    check, for the dense one differs by its weights alone; in soak each is of its own, as `make demo` has them.
    """
    for device in DEVICES:
        emulated(device)
    folder = tmp_path_factory.mktemp("demo")
    jobs = {network.name: network.job for network in networks_of(load_spec("demo"), folder, seed=0)}
    for name in ("dense", "compact") if SOAK else ("compact",):
        job = jobs[name]
        recipe = job.recipe if SOAK else shortened(job.recipe)
        glyphs = data.load(recipe.data)
        train(recipe, glyphs, job.folder)
        export_run(job.folder)
    np.savez(folder / "images.npz", input=glyphs.inputs(glyphs.train.images[:64]))
    shutil.copy(jobs["dense" if SOAK else "compact"].folder / DENSE, folder)
    for file in (COMPACT, "plan.json"):
        shutil.copy(jobs["compact"].folder / file, folder)
    return folder


def test_dense_compact_and_int8_agree_there(models: Path, call: Callable, monkeypatch: pytest.MonkeyPatch):
    """Float32 within its own rounding, int8 to the last bit, and a report without a latency."""
    monkeypatch.chdir(models)
    plan = Plan.read(models / "plan.json")
    assert any(layer.form != "dense" for layer in plan.layers.values())
    assert any(len(group.kept) < group.channels for group in plan.groups.values())
    done = call("quantize compact.onnx -o int8.onnx --data images.npz")
    assert done[0] == 0, done
    for device in DEVICES:
        code, said, error = call(f"bench dense.onnx compact.onnx int8.onnx --device {device}")
        assert code == 0, error
        assert f"{device} is emulated: it yields no times" in said
        bench = Bench.read(models / "bench.json")
        facts = bench.context.facts
        assert (facts.emulated, facts.tile, facts.layout) == (True, 4, "nchw")
        assert ("asimddp" in facts.isa) == (device == "qemu-cortex-a76")
        off = {one.variant: one.relative for one in bench.agreements}
        assert 0 < off["dense"] <= 1e-5
        assert 0 < off["compact"] <= 1e-5
        assert off["int8"] == 0
        assert call("report bench.json")[0] == 0
        for page in ("report.html", "report.md"):
            text = (models / page).read_text()
            assert "emulated" in text
            assert not re.search(r"[0-9] ?(ms|µs)\b|speed-up", text)
