"""Why one model is as fast as it is beside another: explanation.json."""

from __future__ import annotations

from .base import Part, Record, Sha256
from .boards import Facts


class Seconds(Part):
    """A time, or a difference of two, with its 95 % t interval over launches."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


class Explained(Part):
    """One of the two files."""

    file: str
    sha256: Sha256
    size_bytes: int
    macs: int
    parameters: int
    run_s: float | None


class Bar(Part):
    """One cause: what of the gap goes with it, measured on the file in which only it was changed.

    `macs` are those of the file so changed, `places` the layers or nodes where it was found.
    """

    cause: str
    about: str
    places: list[str]
    changed: str
    macs: int
    costs: Seconds


class Matched(Part):
    """A layer of the first file and what stands for it in the second; None where there is none."""

    first: str | None
    second: str | None
    macs_first: int | None
    macs_second: int | None


class Improvement(Part):
    """A change to the second file that was measured to gain: `worth` is its time less that of the changed file.

    `error` is the largest relative change of a layer's kernel; None where the file computes what it did.
    """

    name: str
    about: str
    error: float | None
    worth: Seconds
    command: str


class Explanation(Record):
    """`explanation.json`: the second file's time, less what its MACs promised, cause by cause. Format 1: first version.

    `hoped` is the first file's time in proportion to the MACs; `gap` = the second's time − hoped = the sum of `bars` +
    `residual`. `together` are all improvements in one file. No times are in it where the files are the same.
    """

    device: str
    facts: Facts
    threads: int
    launches: int
    first: Explained
    second: Explained
    hoped: Seconds | None
    gap: Seconds | None
    bars: list[Bar]
    residual: Seconds | None
    layers: list[Matched]
    improvements: list[Improvement]
    together: Improvement | None = None
    left_out: list[str]
    verdict: str
