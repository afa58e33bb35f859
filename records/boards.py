"""A board as a person describes it, and as it is found: cards, facts, weather."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from .base import Part

Text = Annotated[str, Field(max_length=256)]
# what ssh could take for an option, or a terminal for a command, is no name
Word = Annotated[str, Field(pattern=r"^[^\s\x00-\x1f\x7f-\x9f-][^\s\x00-\x1f\x7f-\x9f]*$", max_length=255)]
BoardPath = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f~-][^\x00-\x1f\x7f-\x9f]*$", max_length=1024)]


class Card(Part):
    """A board as a person describes it: identity, how to reach it, what to expect (TOML, never probed).

    `host` may be an alias of the user's ~/.ssh/config, or of `ssh_config` (a file here); what is not given is left to
    that. `workdir` is a folder there, relative to the home folder unless it begins with a slash; `python` an
    interpreter there. Format 1: first version; with transport ssh came `host` to `workdir`.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
    about: str
    transport: Literal["local", "ssh"]
    host: Word | None = None
    user: Word | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    ssh_config: BoardPath | None = None
    python: BoardPath = "python3"
    workdir: BoardPath = ".cache/rankfold"
    expected_architecture: str | None = None
    tested: str = Field(description="date of the last boot by a person, or 'never'")

    @model_validator(mode="after")
    def _reachable(self) -> Card:
        if (self.transport == "ssh") != (self.host is not None):
            raise ValueError(f"transport {self.transport} {'needs a' if self.transport == 'ssh' else 'has no'} host")
        return self


class Fleet(Part):
    """The devices of a lab (TOML): names that `rankfold devices list` knows, and cards of its own. Format 1: first."""

    devices: list[str] = Field(default_factory=list)
    cards: list[Card] = Field(default_factory=list)


class CpuFacts(Part):
    """One logical core's frequency now, in hertz, and its governor; None where the system does not say."""

    core: int
    governor: Text | None
    frequency_hz: int | None


class Facts(Part):
    """What a board turned out to be, probed each time (design §6). Format follows the record it is in."""

    # What decides how fast a model runs, in the order in which a difference is named.
    DECISIVE: ClassVar[tuple[str, ...]] = (
        "architecture", "cpu_model", "isa", "logical_cores", "hypervisor", "emulated", "onnxruntime_version", "layout",
        "tile",
    )  # fmt: skip

    architecture: Text
    cpu_model: Text | None
    isa: list[Text] = Field(description="the vector extensions that decide kernels: avx2, avx512f, asimddp, …")
    logical_cores: int
    affinity: list[int] = Field(description="cores this process may run on")
    clusters: list[list[int]] = Field(default_factory=list, description="these, by speed, the slowest first")
    memory_bytes: int | None
    kernel: Text
    os: Text | None
    hypervisor: bool | None
    python_version: Text
    numpy_version: Text
    onnxruntime_version: Text
    providers: list[Text]
    tile: int = Field(gt=0, description="channel multiple that the float32 kernels like")
    layout: Literal["nchwc", "nchw"]
    emulated: bool = False


class Weather(Part):
    """What changes while one measures: stamped before and after."""

    load_1min: float | None
    memory_available_bytes: int | None
    temperatures_c: dict[Text, float] = Field(default_factory=dict)
    throttled: Text | None = Field(default=None, description="the firmware's throttle flags where it has any")
    cores: list[CpuFacts] = Field(default_factory=list)
    steal_s: float | None = None
