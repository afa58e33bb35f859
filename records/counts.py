"""Instructions that models take on an emulated device: cost.json."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .base import Part, Record, Sha256
from .boards import Facts

Count = Annotated[int, Field(ge=0)]


class LayerCount(Part):
    """A layer alone, between two neighbours that are taken off: with its bias and the activation that follows it."""

    name: str
    macs: int | None
    instructions: int
    multiply_adds: int


class ModelCount(Part):
    """One run of a model: all instructions, SIMD ones that multiply and add, and the multiply-adds that these do."""

    name: str
    file: str
    sha256: Sha256
    macs: int | None
    instructions: Count
    multiplying: Count
    multiply_adds: Count
    layers: list[LayerCount] = Field(default_factory=list, description="those that can be counted alone, if asked for")


class Cost(Record):
    """`cost.json`: a proxy for time, exact and the same everywhere, that knows no caches, no memory and no pipeline.

    Counted with one thread, on inputs of batch one. Format 1: first version.
    """

    device: str
    facts: Facts
    qemu_version: str
    input_shapes: dict[str, list[int]] = Field(description="as asked for; those that are not are the models' own")
    models: list[ModelCount]
