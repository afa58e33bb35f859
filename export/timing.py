"""What a plan will take on a device: layers from the latency table, the whole from measured networks.

A layer's time is a ratio to the same layer dense, timed side by side. What the dense layers take of the network's time
is in proportion to their times alone; how much all of them take together is fitted once, on the network with every
layer in its fastest way, for a cache that is cold in a network may be warm in a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from scipy.optimize import nnls

from ..records import LayerTime
from ..runtime.inputs import Given
from ..runtime.latency import Contest, Stopwatch, Timed, key_of
from .candidates import DENSE, Place, Way, frames_of, model_of, padded_work, place_of
from .damage import distinct, ranks_to_try
from .decompose import Factors
from .fold import naming, opened
from .forms import resolve_any
from .graphs import copied, drop_unused_initializers, refresh_shapes, serialize
from .layers import Layer, layers_of
from .passes.factorize import replace
from .passes.fold_channels import fold_channels
from .passes.rewrites import REWRITES, rewritten
from .reporting import Report, silent
from .tile import spread

_AT_FIRST = 5  # ranks of a form that are timed at once; those chosen are timed later
_CHANNELS_AT_FIRST = 6  # and counts of channels, each at two ranks
_GAIN = 0.995  # a rewrite is kept where it takes less of the time than this, surely
_SURE = 2.0  # standard errors


class LayerTimes:
    """Ratios of layers written in some way to the same layers dense, as wide as they are."""

    def __init__(self, layers: Sequence[Layer], ways: Mapping[str, Iterable[Way]], watch: Stopwatch) -> None:
        self._watch = watch
        self.places = {layer.name: place_of(layer) for layer in layers if layer.name in ways}
        self._ways: dict[Place, set[Way]] = {}
        for name, place in self.places.items():
            self._ways.setdefault(place, set()).update(ways[name])
        self._known: dict[Place, dict[Way, float]] = {}
        self._models: dict[Place, NDArray[np.float64]] = {}
        self._dense: dict[Place, float] = {}

    def measure(self, wanted: Mapping[str, Iterable[Way]] | None = None, report: Report = silent) -> int:
        """Time these ways, or without them a few of all kinds; returns how many models were timed now."""
        if not self._ways:
            return 0
        asked: dict[Place, set[Way]] = {place: set() for place in self._ways}
        if wanted is None:
            asked = {place: set(_spread(ways)) for place, ways in self._ways.items()}
        else:
            for name, ways in wanted.items():
                asked[self.places[name]].update(ways)
        contests = [self._all_dense(), *(_contest(place, sorted(ways, key=_order)) for place, ways in asked.items())]
        timed = self._watch.fill(contests, lambda done, total: report("timing candidates", done, total))
        self._recall(place for place, ways in asked.items() if ways)
        return timed

    def recall(self) -> None:
        """Take from the table what it has, and time nothing."""
        if self._ways:
            self._recall(self._ways)

    def _recall(self, places: Iterable[Place]) -> None:
        self._dense = self._dense or self._dense_layers()
        for place in places:
            self._learn(place, self._ways[place])

    def rows(self) -> list[LayerTime]:
        """What is known, layers that are alike together, slowest layers first; nothing before all have been timed side
        by side.
        """
        alike: dict[Place, list[str]] = {}
        for name, place in self.places.items():
            if place in self._dense and self._known.get(place):
                alike.setdefault(place, []).append(name)
        whole = sum(self.dense(name) for names in alike.values() for name in names) or 1.0
        shares = {place: sum(map(self.dense, names)) / whole for place, names in alike.items()}
        return [
            LayerTime.model_validate(
                {"layers": alike[place], "share": shares[place], "form": way.form, "ranks": way.ranks, "ratio": ratio}
            )
            for place in sorted(alike, key=lambda place: -shares[place])
            for way, ratio in sorted(self._known[place].items(), key=lambda known: known[1])
        ]

    def _all_dense(self) -> Contest:
        """The dense layers against one another."""
        models = [model for place in self._ways for model in (model_of(place, DENSE), *frames_of(place))]
        return Contest(models[0], models)

    def _learn(self, place: Place, ways: Iterable[Way]) -> None:
        table = self._watch.table.known(model_of(place, DENSE))

        def around(channels: tuple[int, int] | None) -> float | None:
            found = [table.get(key_of(frame)) for frame in frames_of(place, channels)]
            return None if None in found else fmean(one.ratio for one in found if one is not None)

        frame = around(None)
        if frame is None:
            return
        own = max(1 - frame, 1e-6)
        known = self._known.setdefault(place, {DENSE: 1.0})
        frames = {channels: around(channels) for channels in {way.channels for way in ways}}
        for way in ways:
            timed, taken_off = table.get(key_of(model_of(place, way))), frames[way.channels]
            if way != DENSE and timed is not None and taken_off is not None:
                known[way] = max((timed.ratio - taken_off) / own, 0.0)
        self._models[place] = _fitted(place, known, self._watch.facts.tile)

    def _dense_layers(self) -> dict[Place, float]:
        """Times of the dense layers, side by side, without what is around them; empty where the table lacks one."""
        first = self._all_dense().reference
        table = self._watch.table.known(first)
        ratios = {key: one.ratio for key, one in table.items()} | {key_of(first): 1.0}
        found = {}
        for place in self._ways:
            keys = [key_of(model) for model in (model_of(place, DENSE), *frames_of(place))]
            if not all(key in ratios for key in keys):
                return {}
            whole, *around = (ratios[key] for key in keys)
            found[place] = max(whole - fmean(around), 0.0)
        return found

    def dense(self, name: str) -> float:
        """Time of the dense layer, without what is around it, as a multiple of one that is the same for all."""
        return self._dense[self.places[name]]

    def is_timed(self, name: str, way: Way) -> bool:
        """Whether the ratio was measured, not read off its neighbours."""
        return way in self._known[self.places[name]]

    def ratio(self, name: str, way: Way) -> float:
        """Time of the layer in this way / dense; of one that was not timed by the model of stairs, in proportion to
        the nearest that was.
        """
        place = self.places[name]
        known = self._known[place]
        if way in known:
            return known[way]
        near = min(known, key=lambda one: _distance(place, one, way))
        return known[near] * self._stairs(place, way) / self._stairs(place, near)

    def _stairs(self, place: Place, way: Way) -> float:
        work = np.array(padded_work(place, way, self._watch.facts.tile))
        return max(float(work @ self._models[place]), 1e-4)

    def fastest(self, name: str) -> Way:
        """The way that was timed fastest, the channels as they are."""
        known = self._known[self.places[name]]
        return min((way for way in known if way.channels is None), key=lambda way: known[way])


def _fitted(place: Place, known: Mapping[Way, float], tile: int) -> NDArray[np.float64]:
    """Times as a sum of what the ways do, no part negative, each way's own error in proportion to its time."""
    work = np.array([padded_work(place, way, tile) for way in known])
    times = np.array([max(ratio, 1e-3) for ratio in known.values()])
    scale = work.max(axis=0)
    scale[scale == 0] = 1.0
    parts, _ = nnls(work / scale / times[:, None], np.ones(len(times)))
    return parts / scale


def _distance(place: Place, one: Way, other: Way) -> tuple[bool, float]:
    """How unlike two ways are: another form first, then channels and ranks by their logarithms."""
    sizes = [(*(way.channels or place.shape[:2]), *way.ranks) for way in (one, other)]
    if one.form != other.form:
        return True, 0.0
    return False, float(np.abs(np.diff(np.log(np.array(sizes, float)), axis=0)).sum())


def _spread(ways: Iterable[Way]) -> list[Way]:
    """Of each form the lowest rank, the highest and some between; so too of its channels, each at fewer ranks."""
    kinds: dict[tuple[str, tuple[int, int] | None], list[Way]] = {}
    for way in ways:
        kinds.setdefault((way.form, way.channels), []).append(way)
    wide, narrow = [], {}
    for (form, channels), same in kinds.items():
        same.sort(key=_order)
        if channels is None:
            wide += spread(same, _AT_FIRST)
        else:
            narrow.setdefault(form, []).append(same)
    for of_form in narrow.values():
        of_form.sort(key=lambda same: same[0].channels)
        wide += [way for same in spread(of_form, _CHANNELS_AT_FIRST) for way in spread(same, 2)]
    return wide


def _order(way: Way) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    return way.form, way.ranks, way.channels or (0, 0)


def _contest(place: Place, ways: Sequence[Way]) -> Contest:
    dense = model_of(place, DENSE)
    if not ways:
        return Contest(dense, [])
    channels = dict.fromkeys([None, *(way.channels for way in ways)])
    frames = [frame for one in channels for frame in frames_of(place, one)]
    return Contest(dense, list(dict.fromkeys([*frames, *(model_of(place, way) for way in ways)])))


# --- whole networks -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forecast:
    """Time of a plan / time of the network with all layers dense: 1 − Σ share · (1 − ratio)."""

    times: LayerTimes
    shares: Mapping[str, float]

    def total(self, ways: Mapping[str, Way]) -> float:
        """Of a way for every layer; one that is not named is dense."""
        return 1 - sum(self.shares[name] * (1 - self.times.ratio(name, way)) for name, way in ways.items())

    @classmethod
    def fitted(cls, times: LayerTimes, measured: float, ways: Mapping[str, Way]) -> Forecast:
        """Shares in proportion to the dense layers' times, such that `ways` take `measured` of the dense time."""
        dense = {name: times.dense(name) for name in times.places}
        whole = sum(dense.values())
        saved = sum(dense[name] / whole * (1 - times.ratio(name, way)) for name, way in ways.items())
        layers = (1 - measured) / saved if saved > 0 else 1.0
        return cls(times, {name: max(layers, 0.0) * own / whole for name, own in dense.items()})


def sketch(model: ir.Model, ways: Mapping[str, Way], rewrites: Iterable[str]) -> bytes:
    """The network with its layers in these ways, to be timed: factors are random, of a size that keeps activations'."""
    copy = copied(model)
    generator = np.random.default_rng(0)
    for layer in layers_of(copy):
        way = ways.get(layer.name, DENSE)
        if not way.is_dense:
            form = resolve_any(way.form, layer.shape)
            kernels = tuple(
                generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
                for shape in form.shapes_at(layer.shape, way.ranks)
            )
            replace(layer, form, Factors(kernels))
    drop_unused_initializers(copy.graph)
    refresh_shapes(copy)
    return serialize(rewritten(copy, rewrites))


def useful_rewrites(model: ir.Model, watch: Stopwatch) -> list[str]:
    """The exact rewrites that this network runs faster with, each tried alone."""
    plain = sketch(model, {}, [])
    written = {name: sketch(model, {}, [name]) for name in REWRITES}
    tried = {name: content for name, content in written.items() if content != plain}
    if not tried:
        return []
    timed = watch.timed(plain, list(tried.values()), whole=True)
    return [name for name, content in tried.items() if _is_faster(timed[key_of(content)])]


def _is_faster(found: Timed) -> bool:
    return found.ratio * np.exp(_SURE * found.error) < _GAIN


def times_of_file(
    source: Path,
    given: Given,
    forms: Sequence[str],
    tile: int,
    watch: Stopwatch,
    *,
    fill: bool,
    report: Report = silent,
) -> list[LayerTime]:
    """What the table says of a file's layers once its channels are folded; with `fill`, what it lacks is timed."""
    with naming(source), TemporaryDirectory(prefix="rankfold-") as folder:
        model, _ = opened(source, given, Path(folder))
        fold_channels(model, tile)
    layers = [layer for layer in layers_of(model) if not layer.closed]
    ways = {layer.name: ways_of(layer, forms, tile) for layer in layers}
    times = LayerTimes(layers, {name: found for name, found in ways.items() if found}, watch)
    if fill:
        times.measure(report=report)
    else:
        times.recall()
    return times.rows()


def ways_of(layer: Layer, forms: Sequence[str], tile: int) -> list[Way]:
    """All ways to factorise a layer that would be scored."""
    return [
        Way(form.name, form.ranks(layer.shape, rank))
        for form in distinct(forms, layer)
        for rank in ranks_to_try(form, layer, tile)
    ]
