"""How good a model is: evaluation.json, and the score of a single file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Part, Record, Sha256


class Score(Part):
    """One model's metric on one split, with a 95 % Wilson interval; joined to variants by sha256."""

    model_sha256: Sha256
    name: str
    data: str
    split: Literal["validation", "test"]
    metric: str
    n: int = Field(gt=0)
    value: float
    low: float
    high: float
    seed: int | None


class Evaluation(Record):
    """`evaluation.json`. Format 1: first version."""

    scores: list[Score]


class ModelScore(Record):
    """`score.json`: what `evaluate` found for one ONNX file, by labels, by its original, or by a user's command.

    Higher is better. The interval is a 95 % Wilson interval, None where the metric is no share of `n` answers.
    Format 1: first version.
    """

    model_sha256: Sha256
    data: str
    metric: str
    n: int | None
    value: float
    low: float | None
    high: float | None
    reference_sha256: Sha256 | None = Field(description="the original that a model without labels is held against")
