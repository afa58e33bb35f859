"""Small networks of a published one, trained alike: how slices begin, and one training from file to row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rankfold.benchmarks import trained
from rankfold.benchmarks.oneshot import cifar
from rankfold.benchmarks.slices import sliced
from rankfold.benchmarks.trained import WEIGHTS_FILE, Job, Network, markdown
from rankfold.train.models.resnet import ResNet


def settled(seed: int = 0) -> ResNet:
    """A ResNet with one block a stage whose BatchNorms have scales of their own."""
    torch.manual_seed(seed)
    model = ResNet(1, 3, 10, (16, 32, 64))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
    return model.eval()


def test_a_slice_of_full_width_is_the_network():
    model, images = settled(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(sliced(model, (16, 32, 64)).eval()(images), model(images))


@pytest.mark.parametrize("widths", [(16, 16, 32), (8, 16, 48), (8, 16, 32)])
def test_a_slice_is_the_network_whose_other_channels_are_dead(widths):
    """Zero all but a slice's channels, and both do the same: shortcuts carry each channel to where it was."""
    model, images = settled(), torch.randn(2, 3, 32, 32)
    sizes = torch.linspace(1, 2, 64)
    keep: dict[int, list[int]] = {}
    before: list[int] = list(range(widths[0]))  # in the first stage the first channels are made the strongest
    keep[16] = before
    for full, extra, width in ((32, 8, widths[1]), (64, 16, widths[2])):
        carried = [channel + extra for channel in before]
        free = [channel for channel in range(full) if channel not in carried]
        before = sorted([*carried, *free[: width - len(carried)]])
        keep[full] = before
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                dead = [c for c in range(module.num_features) if c not in keep[module.num_features]]
                module.weight[dead], module.bias[dead] = 0, 0
                module.weight.mul_(sizes[: module.num_features])
    torch.testing.assert_close(sliced(model, widths).eval()(images), model(images), atol=1e-4, rtol=1e-4)


def test_one_training_from_files_to_row(tmp_path: Path, monkeypatch):
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (40, 32, 32, 3), np.uint8), random.integers(0, 10, 40)
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10])
    torch.manual_seed(0)
    model = ResNet(3, 3, 10, (16, 32, 64))
    torch.save({"state_dict": {f"module.{name}": part for name, part in model.state_dict().items()}}, tmp_path / "r.th")
    monkeypatch.setattr(trained, "BATCH", 12)
    job = Job(
        Network("sliced", widths=(8, 8, 8)), 1, 0.9, 2 * 12 / trained.IMAGES, "resnet20", tmp_path / "r.th", tmp_path
    )
    steps: list[int] = []
    row = trained.trained(job, tmp_path / "data.npz", lambda step, *_: steps.append(step))
    assert steps[-1] == 2
    assert row.test_accuracy in {n / 10 for n in range(11)}
    start = job.start(cifar(tmp_path / "data.npz"), tmp_path / "data.npz").student

    learned = load_file(job.folder / WEIGHTS_FILE)
    assert not torch.equal(learned["conv1.weight"], start.state_dict()["conv1.weight"])
    told = markdown(
        [row.model_copy(update={"seed": seed, "network": name}) for seed in (1, 2) for name in ("a", "dense")]
    )
    assert f"| a | 2 | {row.epochs:.0f} |" in told
    assert "+0.00 ± 0.00" in told
