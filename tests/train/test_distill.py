"""The distillation loss against its formula, written out for two images."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from rankfold.train.distill import distilled, soft_loss

STUDENT = [[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]]
TEACHER = [[4.0, 1.0, -2.0], [0.0, 2.0, 1.0]]


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(z / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_soft_part_is_the_formula(temperature):
    by_hand = 0.0
    for student, teacher in zip(STUDENT, TEACHER, strict=True):
        p, q = softmax(teacher, temperature), softmax(student, temperature)
        by_hand += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / len(STUDENT)
    assert float(soft_loss(torch.tensor(STUDENT), torch.tensor(TEACHER), temperature)) == pytest.approx(by_hand)
    assert by_hand > 0.1


def test_the_weight_mixes_the_two():
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHER)
    hard, soft = F.cross_entropy(student, torch.tensor([0, 2])), soft_loss(student, teacher, 4.0)
    assert float(distilled(hard, student, teacher, 0.0, 4.0)) == pytest.approx(float(hard))
    assert float(distilled(hard, student, teacher, 0.9, 4.0)) == pytest.approx(0.1 * float(hard) + 0.9 * float(soft))
    assert float(soft_loss(teacher, teacher, 4.0)) == pytest.approx(0.0, abs=1e-6)


def test_high_temperatures_match_logits():
    """Hinton et al. 2015, equation 4: for large T the gradient is that of (z − v)²/2 over N classes, means apart."""
    student = torch.tensor(STUDENT, requires_grad=True)
    teacher = torch.tensor(TEACHER)
    soft_loss(student, teacher, 1e3).backward()
    centred = [z - z.mean(1, keepdim=True) for z in (student.detach(), teacher)]
    wanted = (centred[0] - centred[1]) / 3 / len(STUDENT)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, wanted, rtol=2e-2, atol=1e-3)
