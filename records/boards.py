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
    interpreter there, `runner` a program that answers instead, as docs/board.c does. `cpu` is QEMU's name of a
    processor to emulate; a board over ssh that somebody else emulates is `emulated`. Format 1: first version; with
    transport ssh came `host` to `workdir`, then `runner`, with qemu `cpu`, then `emulated`.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
    about: str
    transport: Literal["local", "ssh", "qemu"]
    host: Word | None = None
    user: Word | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    ssh_config: BoardPath | None = None
    python: BoardPath = "python3"
    runner: BoardPath | None = None
    workdir: BoardPath = ".cache/rankfold"
    cpu: Word | None = None
    emulated: bool = False
    expected_architecture: str | None = None
    tested: str = Field(description="date of the last boot by a person, or 'never'")

    @model_validator(mode="after")
    def _reachable(self) -> Card:
        for transport, key in (("ssh", "host"), ("qemu", "cpu")):
            if (self.transport == transport) != (getattr(self, key) is not None):
                raise ValueError(
                    f"transport {self.transport} {'needs a' if self.transport == transport else 'has no'} {key}"
                )
        if self.emulated and self.transport != "ssh":
            raise ValueError(f"transport {self.transport} has no emulated, which is of boards over ssh")
        return self

    @property
    def is_emulated(self) -> bool:
        """Whether its times say nothing of a board's."""
        return self.transport == "qemu" or self.emulated


Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Core = Annotated[int, Field(ge=0, lt=1 << 16)]
Cores = Annotated[list[Core], Field(max_length=1 << 16)]


class Fleet(Part):
    """The devices of a lab (TOML): names that `rankfold devices list` knows, and cards of its own. Format 1: first."""

    devices: list[str] = Field(default_factory=list)
    cards: list[Card] = Field(default_factory=list)


class CpuFacts(Part):
    """One logical core's frequency now, in hertz, and its governor; None where the system does not say."""

    core: Core
    governor: Text | None
    frequency_hz: Count | None


class Facts(Part):
    """What a board turned out to be, probed each time (design §6). Format follows the record it is in."""

    # What decides how fast a model runs, in the order in which a difference is named.
    DECISIVE: ClassVar[tuple[str, ...]] = (
        "architecture", "cpu_model", "isa", "logical_cores", "hypervisor", "emulated", "onnxruntime_version", "layout",
        "tile",
    )  # fmt: skip

    architecture: Text
    cpu_model: Text | None
    isa: list[Text] = Field(
        max_length=256, description="the vector extensions that decide kernels: avx2, avx512f, asimddp, …"
    )
    logical_cores: Annotated[int, Field(gt=0, lt=1 << 16)]
    affinity: Cores = Field(description="cores this process may run on")
    clusters: list[Cores] = Field(default_factory=list, description="these, by speed, the slowest first")
    memory_bytes: Count | None
    kernel: Text
    os: Text | None
    hypervisor: bool | None
    python_version: Text
    numpy_version: Text
    onnxruntime_version: Text
    providers: list[Text] = Field(max_length=64)
    tile: int = Field(gt=0, lt=1 << 16, description="channel multiple that the float32 kernels like")
    layout: Literal["nchwc", "nchw"]
    emulated: bool = False


class Weather(Part):
    """What changes while one measures: stamped before and after."""

    load_1min: Annotated[float, Field(ge=0, lt=1e6)] | None
    memory_available_bytes: Count | None
    temperatures_c: dict[Text, Annotated[float, Field(gt=-300, lt=1e4)]] = Field(default_factory=dict, max_length=256)
    throttled: Text | None = Field(default=None, description="the firmware's throttle flags where it has any")
    cores: list[CpuFacts] = Field(default_factory=list, max_length=1 << 16)
    steal_s: Annotated[float, Field(ge=0, lt=1e12)] | None = None
