"""The search for a plan: every way of every layer with what it costs, solved exactly, whole networks timed.

A draft says how wide the network is and how its layers are written, nothing is fitted yet. Candidates are timed as
layers; what their sum says of a network is fitted to whole networks that were timed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from ..errors import CheckFailed
from ..runtime.latency import Stopwatch, Timed, key_of
from .candidates import DENSE, Way
from .damage import Candidate
from .forms import dense_macs, resolve_any
from .graphs import copied
from .layers import Layer, layers_of
from .memory import held, own_bytes, weight_bytes
from .reporting import Report, silent
from .solve import Choice, Option, Problem
from .tile import spread
from .timing import Forecast, LayerTimes, sketch, useful_rewrites
from .widths import Widths

_MOST_WITH_WIDTHS = 12  # candidates of a layer that are tried at every width
_NODE_BYTES = 300  # of a file, for one more node: names, attributes, the shapes of its factors


@dataclass(frozen=True)
class Draft:
    """A plan before anything is fitted: channels kept by family, a way for every layer that does not stay as it is."""

    widths: Mapping[str, int] = field(default_factory=dict)
    ways: Mapping[str, Way] = field(default_factory=dict)

    @classmethod
    def of(cls, candidates: Mapping[str, Candidate | None]) -> Draft:
        """Of these, at full width."""
        return cls({}, {name: Way(one.form, one.ranks) for name, one in candidates.items() if one is not None})

    def without(self, name: str) -> Draft:
        """The same with one layer dense."""
        way = replace(self.ways[name], form="dense", ranks=())
        return Draft(self.widths, {**self.ways, name: way})


class Search:
    """Candidates, what the table says of them, and what whole networks took, each a share of the original's time.

    Costs by resource: `time`, `damage`, `macs`, `bytes` of the file, `memory` at its peak (weights, and the values
    that live at once).
    """

    def __init__(
        self,
        model: ir.Model,
        original: bytes,
        candidates: Mapping[str, Sequence[Candidate]],
        widths: Widths | None,
        watch: Stopwatch,
        report: Report = silent,
    ) -> None:
        self._model, self._original, self.watch, self._report = model, original, watch, report
        self._candidates, self._widths = candidates, widths
        self._narrow: dict[tuple[tuple[str, int], ...], ir.Model] = {(): model}
        self._options = self._all_options()
        if not self._options:
            raise CheckFailed(
                "expected layers that can be written in another way, found none: each is grouped, kept by name or too "
                "small to gain; fold the model instead, or let channels go with --widths"
            )
        layers: list[Layer] = [layer for layer in layers_of(model) if layer.name in self._options]
        ways = {name: [one.what for one in found] for name, found in self._options.items()}
        self._times = LayerTimes(layers, ways, watch)
        self._times.measure(report=report)
        report("timing whole networks", 0, 3)
        self.rewrites = useful_rewrites(model, watch)
        report("timing whole networks", 1, 3)
        fastest = {name: self._times.fastest(name) for name in self._options}
        whole = {name: way for name, way in fastest.items() if way != DENSE}
        self.dense, in_factors = self.timed(Draft(), Draft({}, whole))
        self._forecast = Forecast.fitted(self._times, in_factors.ratio / self.dense.ratio, whole)
        report("timing whole networks", 2, 3)
        self.fast = self.least("time")
        (self.fastest,) = self.timed(self.fast)
        if in_factors.ratio < self.fastest.ratio:
            self.fast, self.fastest = Draft({}, whole), in_factors
        report("timing whole networks", 3, 3)

    @property
    def narrows(self) -> bool:
        """Whether channels may go as well."""
        return self._widths is not None

    # --- choosing -------------------------------------------------------------------------------------------

    def least(self, minimise: str, limits: Mapping[str, float] | None = None) -> Draft:
        """The draft with the least of one resource within limits of others, all of its layers timed.

        Raises CheckFailed where there is none.
        """
        while True:
            choice = self.problem().solve(minimise, limits or {})
            ways = {name: one.what for name, one in choice.options.items()}
            unknown = {name: [way] for name, way in ways.items() if not self._times.is_timed(name, way)}
            if not unknown:
                return drafted(choice)
            self._times.measure(unknown, self._report)

    def least_damage(self, time: float) -> Draft:
        """The draft with the least damage that should take at most this share of the time, or as little as any can."""
        fastest = self.predicted(self.least("time"))
        return self.least("damage", {"time": max(time, fastest + 1e-6)})

    def problem(self) -> Problem[Way]:
        """What there is to choose from, with what is known of its time."""
        layers = {}
        for name, options in self._options.items():
            share = self._forecast.shares[name] * self.dense.ratio
            layers[name] = [
                replace(one, costs={**one.costs, "time": -share * (1 - self._times.ratio(name, one.what))})
                for one in options
            ]
        groups: dict[str, Mapping[int, Mapping[str, float]]] = {}
        if self._widths is not None:
            groups = {
                name: {width: {"damage": damage} for width, damage in widths.items()}
                for name, widths in self._widths.damage.items()
            }
        return Problem(layers, groups, {"time": self.dense.ratio}, {"memory": self._held.floor})

    def predicted(self, draft: Draft) -> float:
        """Its share of the original's time, from the layers'."""
        return self.dense.ratio * self._forecast.total(draft.ways)

    def ratio(self, name: str, way: Way) -> float:
        """Time of a layer in some way / dense."""
        return self._times.ratio(name, way)

    def candidates_of(self, draft: Draft) -> dict[str, Candidate | None]:
        """The candidate of every layer, None where it is dense."""
        chosen: dict[str, Candidate | None] = {}
        for name, candidates in self._candidates.items():
            way = draft.ways.get(name, DENSE)
            chosen[name] = next((one for one in candidates if (one.form, one.ranks) == (way.form, way.ranks)), None)
        return chosen

    def damage(self, draft: Draft) -> float:
        """As it is predicted: the sum over layers and over the channels that go."""
        factors = sum(one.damage for one in self.candidates_of(draft).values() if one is not None)
        widths = {} if self._widths is None else self._widths.damage
        return factors + sum(widths[name][width] for name, width in draft.widths.items() if name in widths)

    def _all_options(self) -> dict[str, list[Option[Way]]]:
        """Every way of every layer at every width, with its damage."""
        self._held = held(self._model)
        found: dict[str, list[Option[Way]]] = {}
        for layer in layers_of(self._model):
            shapes = {(): layer.shape[:2]} if self._widths is None or layer.closed else self._widths.shapes(layer.name)
            candidates = _few(self._candidates.get(layer.name, ()), self._widths)
            if layer.closed or (not candidates and len(shapes) < 2):
                continue
            options = []
            for widths, channels in shapes.items():
                narrow = None if channels == layer.shape[:2] else channels
                options.append(self._option(layer, Way("dense", (), narrow), 0.0, widths))
                for one in candidates:
                    if _fits(one, layer, channels):
                        way = Way(one.form, one.ranks, narrow)
                        options.append(self._option(layer, way, one.damage, widths))
            found[layer.name] = options
        return found

    def _option(self, layer: Layer, way: Way, damage: float, widths: tuple[tuple[str, int], ...]) -> Option[Way]:
        weights, nodes = weight_bytes(layer, way), 0 if way.is_dense else len(way.ranks)
        costs = {
            "damage": damage,
            "macs": float(_macs(layer, way)),
            "bytes": float(weights + _NODE_BYTES * nodes),
            "memory": float(weights),
        }
        peak = self._held.beside[layer.name] + own_bytes(layer, way)
        return Option(way, costs, dict(widths), {"memory": float(peak)})

    # --- timing ---------------------------------------------------------------------------------------------

    def timed(self, *drafts: Draft) -> list[Timed]:
        """The whole networks against the original, side by side."""
        sketches = [self.sketch(draft) for draft in drafts]
        found = self.watch.timed(self._original, sketches, whole=True)
        return [found[key_of(one)] for one in sketches]

    def sketch(self, draft: Draft) -> bytes:
        """The network as the draft has it, factors random."""
        narrower = {} if self._widths is None else self._widths.narrower(draft.widths)
        key = tuple(sorted(narrower.items()))
        if key not in self._narrow:
            assert self._widths is not None, "only they are narrower"
            copy = copied(self._model)
            self._widths.apply(copy, narrower, 1)
            self._narrow[key] = copy
        return sketch(self._narrow[key], draft.ways, self.rewrites)

    def slowest(self, draft: Draft, count: int) -> list[str]:
        """The layers that take most of a draft's time, each with its ratio to dense."""
        ways = draft.ways
        listed = sorted(ways, key=lambda name: -self._forecast.shares[name] * self.ratio(name, ways[name]))
        return [f"{name} ({self.ratio(name, ways[name]):.2f} of dense)" for name in listed[:count]]


def drafted(choice: Choice[Way]) -> Draft:
    """Without the layers that stay as they are."""
    return Draft(choice.widths, {name: one.what for name, one in choice.options.items() if one.what != DENSE})


def _macs(layer: Layer, way: Way) -> int:
    assert layer.pixels is not None, "closed layers are not written in other ways"
    shape = (*(way.channels or layer.shape[:2]), *layer.shape[2:])
    if way.is_dense:
        return dense_macs(shape, layer.pixels)
    form = resolve_any(way.form, shape)
    return form.macs_of(form.shapes_at(shape, way.ranks), layer.pixels)


def _few(candidates: Sequence[Candidate], widths: Widths | None) -> list[Candidate]:
    """All; or, where each comes at many widths, the least damaging of each number of MACs, and of those a dozen."""
    if widths is None or len(candidates) <= _MOST_WITH_WIDTHS:
        return list(candidates)
    kept: list[Candidate] = []
    for one in sorted(candidates, key=lambda one: (one.macs, one.damage)):
        while kept and kept[-1].damage >= one.damage and kept[-1].macs >= one.macs:
            kept.pop()
        if not kept or one.damage < kept[-1].damage:
            kept.append(one)
    return spread(kept, _MOST_WITH_WIDTHS)


def _fits(one: Candidate, layer: Layer, channels: tuple[int, int]) -> bool:
    """Whether a candidate still saves MACs when its layer has so many channels."""
    assert layer.pixels is not None, "closed layers have no candidates"
    shape = (*channels, *layer.shape[2:])
    form = resolve_any(one.form, shape)
    if any(rank > most for rank, most in zip(one.ranks, form.most(shape), strict=True)):
        return False
    return form.macs_of(form.shapes_at(shape, one.ranks), layer.pixels) < dense_macs(shape, layer.pixels)
