"""sweep.json: the points of a grid, and what each came to."""

from __future__ import annotations

from pydantic import Field

from .base import Part, Record

Setting = bool | int | float | str


class SweepPoint(Part):
    """One network of a sweep: `settings` is where it stands in the grid, energy and seed included.

    What was not measured is None; `failure` says why there is no network at all.
    """

    name: str = Field(description="models/NAME.onnx")
    run: str = Field(description="runs/RUN, where it was trained")
    settings: dict[str, Setting]
    failure: str | None = None
    validation_accuracy: float | None = None
    validation_low: float | None = None
    validation_high: float | None = None
    parameters: int | None = None
    macs: int | None = None
    size_bytes: int | None = None
    speedup: float | None = Field(default=None, description="over the dense network, on the device, side by side")
    speedup_low: float | None = None
    speedup_high: float | None = None


class Sweep(Record):
    """`sweep.json`: accuracies are on the validation split, since the best point is chosen by them.

    Format 1: first version.
    """

    recipe: str
    grid: dict[str, list[Setting]] = Field(description="values of each key, in the order they were given")
    dense_macs: int | None
    dense_parameters: int | None
    points: list[SweepPoint]
