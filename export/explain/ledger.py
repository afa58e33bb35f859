"""The ledger: what a network takes beyond what its MACs promise, cause by cause, from runs side by side.

Time is hoped to go by MACs: t₂ = t₁·m₂/m₁. What was never a layer takes f whatever the MACs, so that f·(1 − m₂/m₁) of
the gap is that part's. Then causes are taken away one after the other; what a cause costs is by how much the distance
to f + (t₁ − f)·m/m₁ falls with it, m being the MACs of the file as it then is. What is left is the residual. All files
run in turns in one process, launch by launch; intervals are over launches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from ...records import Seconds
from ...runtime.latency import Stopwatch, key_of
from ...runtime.stats import half_width

LAUNCHES = 4  # of a contest
FIRST, SECOND, FLOOR, IDLE = "first", "second", "floor", "idle"  # files of a ledger, beside those of its steps
Launches = NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """The second file with one more cause taken away than before; the first step is the file as it is."""

    cause: str
    about: str
    places: list[str]
    changed: str
    content: bytes
    macs: int


@dataclass
class Times:
    """Time of files / time of a reference, launch by launch, by the files' names."""

    name: str
    reference: bytes
    reference_s: list[float] = field(default_factory=list)
    ratios: dict[str, list[float]] = field(default_factory=dict)

    def add(self, watch: Stopwatch, contents: Mapping[str, bytes]) -> None:
        """Run the files in some more launches, in another order than before."""
        seed = watch.options.seed + LAUNCHES * len(self.reference_s)
        keys = {name: key_of(content) for name, content in contents.items()}
        anew = replace(watch, options=replace(watch.options, seed=seed))
        models = list({keys[name]: contents[name] for name in contents}.values())
        found = anew.timed(self.reference, models, whole=True, launches=LAUNCHES)
        for name, key in keys.items():
            self.ratios.setdefault(name, []).extend(found[key].launches)
        self.reference_s.append(next(iter(found.values())).reference_s)

    def of(self, name: str) -> Launches:
        """Seconds of every launch, the reference's speed being the same in all."""
        count = max(map(len, self.ratios.values()))
        ratios = [1.0] * count if name == self.name else self.ratios[name]
        return np.array(ratios) * fmean(self.reference_s)

    def gains(self, name: str) -> Launches:
        """What a file takes less than the reference."""
        found = self.of(name)
        return self.of(self.name)[: len(found)] - found


def over_launches(launches: Launches) -> Seconds:
    """Mean and 95 % t interval."""
    mean, half = float(launches.mean()), half_width(launches.tolist())
    return Seconds(value=mean, low=mean - half, high=mean + half)


@dataclass(frozen=True)
class Ledger:
    """Times of both files, of every step by its cause, and, where they could be had, of the first file without its
    layers and of one that only takes and gives what that does.
    """

    times: Times
    first_macs: int
    steps: Sequence[Step]

    @property
    def has_floor(self) -> bool:
        """Whether the part that was never a layer is known, and less than the whole."""
        return {FLOOR, IDLE} <= self.times.ratios.keys() and bool(self._floor().mean() < self.times.of(FIRST).mean())

    def hoped(self) -> Launches:
        """The first file's time in proportion to the MACs."""
        return self.times.of(FIRST) * self.steps[0].macs / self.first_macs

    def gap(self) -> Launches:
        """What the second file takes beyond that."""
        return self.times.of(SECOND) - self.hoped()

    def floor_costs(self) -> Launches:
        """What was never a layer, as far as the MACs promised that it would go."""
        return self._fixed() * (1 - self.steps[0].macs / self.first_macs)

    def costs(self, number: int) -> Launches:
        """Of the cause that step `number`, 1 or more, takes away."""
        return self._beyond(number - 1) - self._beyond(number)

    def residual(self) -> Launches:
        """What no cause explains."""
        return self._beyond(len(self.steps) - 1)

    def _floor(self) -> Launches:
        return np.maximum(self.times.of(FLOOR) - self.times.of(IDLE), 0.0)

    def _fixed(self) -> Launches:
        return self._floor() if self.has_floor else np.zeros_like(self.times.of(FIRST))

    def _beyond(self, number: int) -> Launches:
        step, fixed = self.steps[number], self._fixed()
        promised = fixed + (self.times.of(FIRST) - fixed) * step.macs / self.first_macs
        return self.times.of(step.cause if number else SECOND) - promised
