"""A teacher that is asked once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rankfold.benchmarks.remembering import Remembering
from rankfold.records import Plan
from rankfold.train import data
from rankfold.train.models import build
from rankfold.train.planned import planned
from rankfold.train.trainer import Start, train

from ..train.recipes import tiny


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.asked = nn.Linear(12, 5), 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.asked += 1
        return self.inner(inputs.flatten(1))


@pytest.fixture
def batch() -> Tensor:
    return torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def test_a_batch_is_answered_once_and_the_same_in_every_process_and_layout(tmp_path: Path, batch: Tensor) -> None:
    first = Counting()
    said = Remembering(first, tmp_path)(batch)

    second = Counting()  # of other weights: it is not asked
    again = Remembering(second, tmp_path)(batch.contiguous(memory_format=torch.channels_last))

    assert torch.equal(said, first(batch))
    assert torch.equal(again, said)
    assert second.asked == 0
    assert again.dtype == torch.float32
    assert not [file for file in tmp_path.rglob("*") if file.suffix == ".part"]


def test_another_batch_is_another_question(tmp_path: Path, batch: Tensor) -> None:
    teacher = Counting()
    remembering = Remembering(teacher, tmp_path)
    other = batch.clone()
    other[-1, -1, -1, -1] += 1e-6
    remembering(batch), remembering(other), remembering(batch[:3]), remembering(batch)

    assert teacher.asked == 3
    assert torch.equal(remembering(other), teacher(other))
    assert torch.equal(remembering(batch[:3]), teacher(batch[:3]))


def test_it_is_frozen_and_evaluates(tmp_path: Path, batch: Tensor) -> None:
    teacher = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5)).train()
    said = Remembering(teacher, tmp_path)(batch)

    assert not said.requires_grad
    assert not teacher.training
    assert teacher[0].num_batches_tracked == 0  # pyright: ignore


def test_who_learns_from_it_learns_the_same_bit_for_bit(tmp_path: Path) -> None:
    recipe = planned(tiny(optimizer={"lr": 0.02, "batch_size": 16, "steps": 6}))
    glyphs = data.load(recipe.data)

    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return build(recipe.model, glyphs.channels, len(glyphs.classes))

    said = tmp_path / "said"
    teachers = {
        "asked": network(1).requires_grad_(False),
        "asked and kept": Remembering(network(1), said),
        "kept": Remembering(network(2), said),  # would say something else
    }
    learned = {}
    for name, teacher in teachers.items():
        student = network(0)
        train(recipe, glyphs, tmp_path / name, start=Start(student, teacher, Plan(tile=1), "0" * 64, "0" * 64))
        learned[name] = student.state_dict()

    for name, value in learned["asked"].items():
        assert torch.equal(learned["asked and kept"][name], value)
        assert torch.equal(learned["kept"][name], value)
    assert any(not torch.equal(value, network(0).state_dict()[name]) for name, value in learned["asked"].items())
