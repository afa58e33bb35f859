"""A board as a person describes it, and as it is found: cards, facts, weather."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .base import Part


class Card(Part):
    """A board as a person describes it: identity, how to reach it, what to expect (TOML, never probed)."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
    about: str
    transport: Literal["local"]
    expected_architecture: str | None = None
    tested: str = Field(description="date of the last boot by a person, or 'never'")


class CpuFacts(Part):
    """One logical core's frequency now, in hertz, and its governor; None where the system does not say."""

    core: int
    governor: str | None
    frequency_hz: int | None


class Facts(Part):
    """What a board turned out to be, probed each time (design §6). Format follows the record it is in."""

    # What decides how fast a model runs, in the order in which a difference is named.
    DECISIVE: ClassVar[tuple[str, ...]] = (
        "architecture", "cpu_model", "isa", "logical_cores", "hypervisor", "emulated", "onnxruntime_version", "layout",
        "tile",
    )  # fmt: skip

    architecture: str
    cpu_model: str | None
    isa: list[str] = Field(description="the vector extensions that decide kernels: avx2, avx512f, asimddp, …")
    logical_cores: int
    affinity: list[int] = Field(description="cores this process may run on")
    clusters: list[list[int]] = Field(default_factory=list, description="these, by speed, the slowest first")
    memory_bytes: int | None
    kernel: str
    os: str | None
    hypervisor: bool | None
    python_version: str
    numpy_version: str
    onnxruntime_version: str
    providers: list[str]
    tile: int = Field(gt=0, description="channel multiple that the float32 kernels like")
    layout: Literal["nchwc", "nchw"]
    emulated: bool = False


class Weather(Part):
    """What changes while one measures: stamped before and after."""

    load_1min: float | None
    memory_available_bytes: int | None
    temperatures_c: dict[str, float] = Field(default_factory=dict)
    throttled: str | None = Field(default=None, description="the firmware's throttle flags where it has any")
    cores: list[CpuFacts] = Field(default_factory=list)
    steal_s: float | None = None
