"""The ledger: what a network takes beyond what its MACs promise, cause by cause, from runs side by side.

Time is hoped to go by MACs: t₂ = t₁·m₂/m₁. What was never a layer takes f whatever the MACs, so that a share
f·(1 − m₂/m₁) of the gap is that part's. Then causes are taken away one after the other; what a cause costs is by how
much the distance to f + (t₁ − f)·m/m₁ falls with it, m being the MACs of the file as it then is. What is left is the
residual. All files run in turns in one process, launch by launch; intervals are over launches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...records import Seconds
from ...runtime.latency import Stopwatch, key_of
from ...runtime.stats import half_width

LAUNCHES = 4  # at once


@dataclass(frozen=True)
class Step:
    """The second file as it was before, with one more cause taken away; the first step is the file as it is."""

    cause: str
    about: str
    places: list[str]
    changed: str
    content: bytes
    macs: int


@dataclass
class Runs:
    """Time of files / time of the reference, launch by launch."""

    reference: bytes
    reference_s: list[float] = field(default_factory=list)
    ratios: dict[str, list[float]] = field(default_factory=dict)

    def add(self, watch: Stopwatch, contents: Sequence[bytes]) -> None:
        """Time the files in some more launches."""
        others = list(dict.fromkeys(one for one in contents if one != self.reference))
        found = watch.timed(self.reference, others, launches=LAUNCHES)
        for one in others:
            timed = found[key_of(one)]
            self.ratios.setdefault(key_of(one), []).extend(timed.launches)
        self.reference_s.append(next(iter(found.values())).reference_s)

    def of(self, content: bytes) -> NDArray[np.float64]:
        """Every launch's seconds, the reference's speed being the same in all."""
        count = max(map(len, self.ratios.values()))
        ratios = [1.0] * count if content == self.reference else self.ratios[key_of(content)]
        return np.array(ratios) * float(np.median(self.reference_s))


def seconds(launches: NDArray[np.float64]) -> Seconds:
    """Mean and 95 % t interval."""
    mean, half = float(launches.mean()), half_width(launches.tolist())
    return Seconds(value=mean, low=mean - half, high=mean + half)


@dataclass(frozen=True)
class Ledger:
    """`floor` is the first file without its layers, None where that cannot be timed."""

    runs: Runs
    first: bytes
    first_macs: int
    floor: bytes | None
    steps: Sequence[Step]

    @property
    def second(self) -> Step:
        """The file that is explained."""
        return self.steps[0]

    def gap(self) -> NDArray[np.float64]:
        """Launch by launch: what the second file takes beyond its MACs' share of the first's time."""
        return self.runs.of(self.second.content) - self.runs.of(self.first) * self.second.macs / self.first_macs

    def floor_costs(self) -> NDArray[np.float64]:
        """What was never a layer, as far as the MACs promised that it would go."""
        return self._fixed() * (1 - self.second.macs / self.first_macs)

    def costs(self, number: int) -> NDArray[np.float64]:
        """Of the cause that step `number`, 1 or more, takes away."""
        return self._beyond(self.steps[number - 1]) - self._beyond(self.steps[number])

    def residual(self) -> NDArray[np.float64]:
        """What no cause explains."""
        return self._beyond(self.steps[-1])

    def _fixed(self) -> NDArray[np.float64]:
        return np.zeros_like(self.gap()) if self.floor is None else self.runs.of(self.floor)

    def _beyond(self, step: Step) -> NDArray[np.float64]:
        fixed, share = self._fixed(), step.macs / self.first_macs
        return self.runs.of(step.content) - (fixed + (self.runs.of(self.first) - fixed) * share)


def worth(runs: Runs, contents: Mapping[str, bytes]) -> dict[str, Seconds]:
    """What each changed file gains over the reference, by name."""
    found = {name: runs.of(content) for name, content in contents.items()}
    return {name: seconds(runs.of(runs.reference)[: len(times)] - times) for name, times in found.items()}
