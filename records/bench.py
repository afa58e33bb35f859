"""What was measured: bench.json, and changes between two of them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from .base import Part, Positive, Record, Sha256
from .boards import Facts, Weather


class Launch(Part):
    """One fresh process of one variant."""

    pair: int
    warmup_s: list[float]
    session_creation_s: float
    first_run_s: float
    peak_rss_bytes: int | None
    baseline_rss_bytes: int | None = Field(description="resident memory before the session was created")
    providers: list[str]
    nodes_by_provider: dict[str, int]


class Variant(Part):
    """One model in a comparison."""

    name: str
    file: str
    sha256: Sha256
    size_bytes: int
    macs: int | None
    parameters: int | None
    launches: list[Launch]


class Block(Part):
    """Consecutive samples of one variant, seconds since the pair began."""

    variant: str
    start_s: float
    samples_s: list[Positive] = Field(min_length=1)
    cpu_s: float | None
    steal_s: float | None
    involuntary_switches: int | None


class Pair(Part):
    """Baseline and variant, each in a fresh process, both alive, taking turns."""

    baseline: str
    variant: str
    seed: int
    blocks: list[Block]


class Comparison(Part):
    """ratio = baseline time / variant time: 2.0 is twice as fast; 95 % t interval over pairs."""

    baseline: str
    variant: str
    ratio: float
    low: float
    high: float
    pairs: int


class Caution(Part):
    """Something that looks wrong in the measurement, and what to do about it."""

    what: str
    remedy: str


class Context(Part):
    """All that must agree before two benches may be compared."""

    device: str
    facts: Facts
    threads: int
    cores: list[int]
    provider: str
    session_config: dict[str, str]
    input_shapes: dict[str, list[int]]
    inputs_sha256: str | None = Field(default=None, description="of the npz file with the inputs; null for random ones")
    block_runs: int
    dropped_runs: int
    started_at: str = Field(description="ISO 8601, UTC")
    weather_before: Weather
    weather_after: Weather | None


class Change(Part):
    """A model then and now: its speed-ups over the common baseline, and its time now / then with a 95 % interval."""

    variant: str
    same_file: bool
    then: float
    now: float
    time: float
    low: float
    high: float
    pairs: tuple[int, int]


class Changes(Record):
    """What `rankfold compare` found between two benches. Format 1: first version."""

    baseline: str
    changes: list[Change]
    only_then: list[str]
    only_now: list[str]


class Paced(Part):
    """A model on frames that arrive at a fixed rate; a frame that arrives during a run is dropped.

    `responses_s` are from a frame's arrival to its end; the deadline is the next frame's arrival.
    """

    variant: str
    rate_hz: Positive
    samples_s: list[Positive]
    responses_s: list[Positive]
    dropped: int


class Moment(Part):
    """A block of a sustained run: seconds since its beginning, its undisturbed run, and the weather at its end."""

    at_s: float
    run_s: Positive
    weather: Weather


class Sustained(Part):
    """A model that runs without a pause."""

    variant: str
    moments: list[Moment] = Field(min_length=1)


class OperatorTime(Part):
    """A node of the optimised graph: the plan's layer it belongs to, None for none; seconds in each profiled run."""

    name: str
    op: str
    provider: str
    layer: str | None
    samples_s: list[float]


class OperatorTable(Part):
    """Where a model's time goes, by the runtime's own profile; `runs_s` are the whole runs."""

    variant: str
    runs_s: list[Positive] = Field(min_length=1)
    nodes: list[OperatorTime]


class Pilot(Part):
    """Pairs timed to choose the count, and then left out: relative half-widths, wanted and found, by variant."""

    wanted_half_width: float
    pairs: int
    half_widths: dict[str, float]


class Begun(Record):
    """First line of `bench.json.part`: what its pairs have in common, and what goes into their record. Format 1: first.

    `key` is a digest over device, options and models.
    """

    key: Sha256
    pairs: int
    block_runs: int
    couples: int
    block_limit_s: float
    started_at: str
    weather: Weather
    pilot: Pilot | None


class Done(Part):
    """Any other line of it: a pair, and its launches by variant."""

    pair: Pair
    launches: dict[str, Launch]


class Agreement(Part):
    """How far a variant's outputs on the device are off those of the machine that asked, relative to the largest."""

    variant: str
    relative: Annotated[float, Field(ge=0)]
    allowed: Positive

    @property
    def passed(self) -> bool:
        """Whether they agree."""
        return self.relative <= self.allowed


class Bench(Record):
    """`bench.json`: raw samples first, everything else derived from them.

    Format 1: first version; what came later (`pilot`, `paced`, `sustained`, `operators`, `inputs_sha256`,
    `agreements`) may be missing. Of an emulated device there are agreements, and no times.
    """

    history: ClassVar[str] = "1: first version"
    context: Context
    variants: list[Variant]
    pairs: list[Pair]
    comparisons: list[Comparison]
    cautions: list[Caution]
    pilot: Pilot | None = None
    paced: list[Paced] = Field(default_factory=list)
    sustained: list[Sustained] = Field(default_factory=list)
    operators: list[OperatorTable] = Field(default_factory=list)
    agreements: list[Agreement] = Field(default_factory=list)
