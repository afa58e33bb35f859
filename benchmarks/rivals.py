"""Plans by measured time against plans by MACs and by energy, all losing as much top-1: which network is the fastest?

Labels place the methods at an equal drop on the test images; they choose no form and no rank. Every accuracy
is a row, and where each method ends: what was tried is not tried again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx_ir as ir

from ..errors import InputError
from ..export.candidates import Way
from ..export.choose import plan_by_energy
from ..export.damage import Candidate
from ..export.evaluate import score
from ..export.fold import finished
from ..export.graphs import serialize
from ..export.layers import layers_of
from ..export.network import Network
from ..export.passes.rewrites import rewritten
from ..export.reporting import silent
from ..export.search import Draft
from ..export.solve import Option, Problem
from ..export.verify import in_place
from ..records import ChoosingRow, LayerDecision, Plan
from ..runtime.latency import key_of
from .answers import Answers, Found
from .placing import Decisions, Method, Placed, placed
from .questions import in_words, launched
from .subject import Subject

DROPS = (0.01, 0.03)  # of top-1, as shares of the test images
PAIRS = 8
ENERGY_FORMS = ("channel", "input-channel", "spatial")
_FIRST_DAMAGE, _FIRST_LOST = 0.02, 0.05  # of the outputs' variance, of Σσ: where looking begins


@dataclass(frozen=True)
class Built:
    """A network with its factors, and its share of the MACs."""

    proto: onnx.ModelProto
    macs: float


@dataclass
class Rivals:
    """Methods for one subject, and the drops of their networks."""

    subject: Subject
    answers: Answers
    details: list[object]
    _networks: dict[str, Built] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.subject.dataset is None:
            raise InputError(f"{self.subject.name}: no trained weights, so no accuracy to lose; name another network")

    @cached_property
    def methods(self) -> dict[str, Method]:
        """All that are held against one another."""
        begin, end = math.log(_FIRST_DAMAGE), math.log(1e3)
        ours = Method("ours", self._by_time, begin, math.log(4), end)
        macs = Method("macs", self._by_macs, begin, math.log(4), end)
        energy = [
            Method(_energy_name(form, aware), partial(self._by_energy, form), *_ENERGY_KNOB, aware)
            for form in ENERGY_FORMS
            for aware in (False, True)
        ]
        return {method.name: method for method in (ours, macs, *energy)}

    def known_or_placed(self, method: Method, wanted: float) -> Placed:
        """The same as `placed`, found once: its layers are the row's note."""

        def found() -> Found:
            knob, one = self.placed(method, wanted)
            figures = {"drop": one.drop, "macs": self._built_as(one).macs, "knob": knob}
            return Found(figures, json.dumps(_ways(one.decisions)))

        row = self.answers.once("placed", self.subject.name, self._key(method, wanted), found)
        return _placed_in(row, method)

    def _key(self, method: Method, wanted: float) -> list[object]:
        return [*self.details, method.name, wanted]

    def placed(self, method: Method, wanted: float) -> tuple[float, Placed]:
        """The network of a method that loses most, but not more than `wanted`, and its knob; looking begins where the
        method was placed for less.
        """
        tried: dict[float, Placed] = {}
        for less in (drop for drop in DROPS if drop < wanted):
            row = self.answers.known("placed", self.subject.name, self._key(method, less))
            if row is not None and "knob" in row.figures:
                tried[row.figures["knob"]] = _placed_in(row, method)
        return placed(method, wanted, tried, self.drop, self.subject.report)

    # --- methods --------------------------------------------------------------------------------------------

    def _by_time(self, knob: float) -> Decisions:
        search = self.subject.search
        draft = search.least("time", {"damage": math.exp(knob)})
        return _decisions(search.candidates_of(draft))

    def _by_macs(self, knob: float) -> Decisions:
        choice = self._by_size.solve("macs", {"damage": math.exp(knob)})
        return _decisions({name: one.what for name, one in choice.options.items()})

    @cached_property
    def _by_size(self) -> Problem[Candidate | None]:
        """The solver's own problem with MACs in the place of time, ranks of any size."""
        dense = {layer.name: float(layer.macs or 0) for layer in layers_of(self.subject.model)}
        return Problem(
            {
                name: [
                    Option[Candidate | None](None, {"macs": dense[name], "damage": 0.0}),
                    *(Option(one, {"macs": float(one.macs), "damage": one.damage}) for one in found),
                ]
                for name, found in self.subject.of_any_rank.items()
            }
        )

    def _by_energy(self, form: str, knob: float) -> Decisions:
        plan = plan_by_energy(self.subject.model, form=form, energy=1 - math.exp(knob), tile=self.subject.tile)
        return {name: layer for name, layer in plan.layers.items() if layer.form != "dense"}

    # --- networks -------------------------------------------------------------------------------------------

    def built(self, decisions: Decisions, aware: bool) -> Built:
        """As `compress` would build it."""
        key = json.dumps([_ways(decisions), aware])
        if key not in self._networks:
            model = self.subject.copy()
            dense = {layer.name: layer.macs or 0 for layer in layers_of(model)}
            network = Network(model, self.subject.samples if aware else None, silent)
            plan = network.factorize(Plan(tile=1, layers=dict(decisions)))
            left = dense | {name: layer.macs or 0 for name, layer in plan.layers.items()}
            proto = ir.to_proto(finished(model, None))
            self._networks[key] = Built(proto, sum(left.values()) / sum(dense.values()))
        return self._networks[key]

    def drop(self, decisions: Decisions, aware: bool) -> float:
        """Of top-1, as a share of the test images; looked up where such a network has been judged."""
        if not decisions:
            return 0.0
        return self._accuracy({}, True) - self._accuracy(decisions, aware)

    def _accuracy(self, decisions: Decisions, aware: bool) -> float:
        def measured() -> Found:
            built = self.built(decisions, aware)
            path = self.subject.folder / "judged.onnx"
            path.write_bytes(built.proto.SerializeToString())
            found = score(path, self._inputs, self._labels, data="", split="test", seed=None, name=self.subject.name)
            return Found({"accuracy": found.value, "macs": built.macs, "layers": float(len(decisions))})

        key = [*self.details, _ways(decisions), aware]
        return self.answers.once("accuracy", self.subject.name, key, measured).figures["accuracy"]

    @cached_property
    def _inputs(self) -> np.ndarray:
        assert self.subject.dataset is not None, "checked before"
        return self.subject.dataset.inputs(self.subject.dataset.test.images)

    @property
    def _labels(self) -> np.ndarray:
        assert self.subject.dataset is not None, "checked before"
        return self.subject.dataset.test.labels

    # --- the comparison -------------------------------------------------------------------------------------

    def at(self, wanted: float) -> Found:
        """How many times as fast ours is as each rival that loses as much, and as the dense network."""
        found = {name: self.known_or_placed(method, wanted) for name, method in self.methods.items()}
        found["ours"] = self._held_against_dense(found["ours"])
        contents = {name: self._content(one) for name, one in found.items()}
        kept = ["ours", "macs", *(self._fastest(contents, aware) for aware in (False, True))]
        names = ("ours", "macs", "energy", "energy with data")
        with TemporaryDirectory(dir=self.subject.folder) as folder:
            models = {called: contents[name] for called, name in zip(names, kept, strict=True)}
            models["dense"] = self.subject.source.read_bytes()
            compared = launched(self.subject, Path(folder), models, PAIRS)
        figures = {"points": 100 * wanted}
        for called, (ratio, low, high) in compared.items():
            figures |= {f"over {called}": 1 / ratio, f"{called} low": 1 / high, f"{called} high": 1 / low}
        for called, name in zip(names, kept, strict=True):
            figures |= {f"{called} drop": 100 * found[name].drop, f"{called} MACs": self._built_as(found[name]).macs}
        told = {called: in_words(found[name].decisions) for called, name in zip(names, kept, strict=True)}
        return Found(figures, "; ".join(f"{called}: {layers}" for called, layers in told.items()))

    def _held_against_dense(self, ours: Placed) -> Placed:
        """Without layers that are slower in place, as every plan of ours."""
        draft = Draft({}, {name: Way(layer.form, tuple(layer.ranks)) for name, layer in ours.decisions.items()})
        slower = in_place(self.subject.search, draft, self.subject.report).slower()
        decisions = {name: layer for name, layer in ours.decisions.items() if name not in slower}
        return Placed(ours.method, decisions, ours.aware, self.drop(decisions, ours.aware)) if slower else ours

    def _built_as(self, placed: Placed) -> Built:
        return self.built(placed.decisions, placed.aware)

    def _content(self, placed: Placed) -> bytes:
        """The file, with the exact rewrites that all methods get."""
        return serialize(rewritten(ir.from_proto(self._built_as(placed).proto), self.subject.search.rewrites))

    def _fastest(self, contents: Mapping[str, bytes], aware: bool) -> str:
        """The form of the energy rule whose network runs fastest, timed roughly."""
        names = [_energy_name(form, aware) for form in ENERGY_FORMS]
        timed = self.subject.watch.timed(contents["ours"], [contents[name] for name in names], whole=True)
        return min(names, key=lambda name: timed[key_of(contents[name])].ratio)


_ENERGY_KNOB = (math.log(_FIRST_LOST), math.log(2), math.log(0.99))


def _energy_name(form: str, aware: bool) -> str:
    return f"{form}, one energy{', with data' if aware else ''}"


def _decisions(candidates: Mapping[str, Candidate | None]) -> Decisions:
    return {name: _decision(one.form, one.ranks) for name, one in candidates.items() if one is not None}


def _placed_in(row: ChoosingRow, method: Method) -> Placed:
    decisions = {name: _decision(form, ranks) for name, (form, ranks) in json.loads(row.note).items()}
    return Placed(method.name, decisions, method.aware, row.figures["drop"])


def _decision(form: str, ranks: Sequence[int]) -> LayerDecision:
    return LayerDecision.model_validate({"form": form, "ranks": list(ranks), "reason": ""})


def _ways(decisions: Decisions) -> dict[str, list[object]]:
    return {name: [layer.form, list(layer.ranks)] for name, layer in sorted(decisions.items())}


def rivals(subject: Subject, answers: Answers, details: list[object], wanted: float) -> Found:
    """Ours against all rivals at a drop of `wanted`."""
    return Rivals(subject, answers, details).at(wanted)
