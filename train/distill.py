"""Distillation: a small network learns what a large one says of all classes, not only which label is right.

Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2: both outputs are softened by a
temperature T (equation 1, softmax(z/T)); the gradients of the soft part shrink as 1/T², hence the factor T².
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher/T) ‖ softmax(student/T)) of logits N×classes, the mean over N; 0 where they agree."""
    wanted, found = (F.log_softmax(logits / temperature, dim=1) for logits in (teacher, student))
    return F.kl_div(found, wanted, reduction="batchmean", log_target=True) * temperature**2


def distilled(cross_entropy: Tensor, student: Tensor, teacher: Tensor, weight: float, temperature: float) -> Tensor:
    """(1 − weight) · cross-entropy + weight · `soft_loss`."""
    return (1 - weight) * cross_entropy + weight * soft_loss(student, teacher, temperature)
