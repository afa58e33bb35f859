"""A recipe that trains in a second, for tests of the loop around it."""

from __future__ import annotations

from typing import Any

from rankfold.records import Recipe

TINY: dict[str, Any] = {
    "format": 1,
    "about": "a network that trains in a second",
    "model": {"name": "dec3", "arguments": {"widths": [4, 8, 8]}},
    "data": {"name": "glyphs", "train_size": 144, "test_size": 72, "augment": "shift"},
    "optimizer": {"lr": 0.05, "batch_size": 16, "steps": 30},
    "regularizer": {"low_rank": 0.05, "group": 0.05, "every": 3, "hold_from": 0.6, "tile": 2, "energy": 0.95},
    "promise": {"metric": "validation_accuracy", "at_least": 0.0, "measured_on": "nothing"},
}


def tiny(**changes: Any) -> Recipe:
    """The tiny recipe with whole tables changed."""
    return Recipe.model_validate({**TINY, **changes})


def toml() -> str:
    """The tiny recipe as a file."""
    return """
format = 1
about = "a network that trains in a second"
[model]
name = "dec3"
arguments = { widths = [4, 8, 8] }
[data]
name = "glyphs"
train_size = 144
test_size = 72
augment = "shift"
[optimizer]
lr = 0.05
batch_size = 16
steps = 30
[regularizer]
low_rank = 0.05
group = 0.05
every = 3
hold_from = 0.6
tile = 2
energy = 0.95
[promise]
metric = "validation_accuracy"
at_least = 0.0
measured_on = "nothing"
"""
