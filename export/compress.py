"""Any ONNX graph in, a smaller graph that does nearly the same out: `rankfold compress`.

First everything that is exact (`fold`), then a form and a rank for every layer: by energy, or by the damage each
would do for the MACs it saves. With calibration data both the choice and the factors go by outputs, layer after
layer, each seeing what the compressed network before it puts out; without data, by the kernels alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx_ir as ir

from ..devices import card
from ..errors import CheckFailed
from ..files import sha256_of
from ..records import Compressed, Frontier, GroupDecision, Parity, Plan, PlanTiming, kept_by_layer
from ..runtime.inputs import Given
from ..runtime.latency import Stopwatch, key_of
from ..runtime.measure import measure
from ..runtime.onnxfile import embedded
from ..runtime.stats import samples_of, undisturbed
from .budget import choose, counted, judged
from .calibration import Preprocess, Samples, first
from .damage import Scored, damage_of
from .fold import finished, naming, opened, record_names, written
from .graphs import serialize
from .int8_times import in_int8, int8_watch
from .judge import Judge, require_classes, require_enough
from .layers import layers_of, require_known
from .network import Network
from .opsets import target as runtime_named
from .parity import lossy_check, require
from .passes.fold_channels import fold_channels
from .passes.rewrites import rewritten
from .prune import Channels, prune
from .quantize import Int8, require_quantisable
from .reporting import Report, silent
from .rules import curves
from .search import Search
from .widths import Widths
from .wish import BYTES_A_LAYER, Wish, frontier_points, merged, plan_of, steps_of, timed_decision

_SUMMARY = "compressed.json"


@dataclass(frozen=True)
class Job:
    """One compression as the command asks for it. `report(what, done, total)` is called as it goes.

    With `int8` a plan by time goes by what int8 takes, as a share of what the original takes in int8.
    """

    wish: Wish
    data: Path | None = None
    most: int = 512
    how: Preprocess = field(default_factory=Preprocess)
    plan_only: bool = False
    frontier: bool = False
    target_ort: str | None = None
    given: Given | None = None
    report: Report = silent
    watch: Stopwatch | None = None
    device: str = "host"
    int8: Int8 | None = None

    def into(self, folder: Path, source: Path, name: str) -> list[str]:
        """Work in a scratch folder; returns the files there, first the summary (`Compressed`), the model's last.

        Raises InputError for a model, plan or data that cannot be used, CheckFailed when an exact step is not
        exact or the budget cannot be met.
        """
        wanted = None if self.target_ort is None else runtime_named(self.target_ort)
        with naming(source):
            model, case = opened(source, self.given or Given(), folder)
            if self.int8 is not None:
                require_quantisable(model)
            samples = self._samples(model)
            self._require_judge(model, samples)
            dense_macs = {layer.name: layer.macs for layer in layers_of(model)}
            require_known(self.wish.keep, dense_macs)
            groups = fold_channels(model, self.wish.tile)
            case.exact(model, "fold dead channels")
            before = ir.to_proto(model)
            if self.wish.prune is not None:
                prune(model, self.wish.prune, tile=self.wish.tile, samples=samples, report=self.report)
                pruned = fold_channels(model, self.wish.tile)
                groups = merged(groups, pruned)
                network = Network(model, samples, self.report, before, kept_by_layer(pruned))
            else:
                network = Network(model, samples, self.report)
            drawn, steps, sha256 = None, [], sha256_of(source)
            if self.wish.time is not None:
                plan, network, drawn = self._timed_plan(network, source, groups, dense_macs)
            else:
                if self.frontier or self.wish.macs is not None or self.wish.budget_bytes is not None:
                    steps = steps_of(network, self.wish)
                plan = plan_of(network, self.wish, steps, groups, dense_macs)
            plan = plan.model_copy(update={"source_sha256": sha256})
            done, extra = Compressed(plan=plan), []
            if self.frontier:
                done = done.model_copy(update={"frontier": frontier_points(steps), "curves": drawn})
            if drawn is not None:
                extra = [frontier_name(name)]
                drawn.model_copy(update={"source_sha256": sha256}).write(folder / extra[0])
            if self.plan_only:
                plan_name = record_names(name)[1]
                plan.write(folder / plan_name)
                return [_summary(folder, done), *extra, plan_name]
            rewrites = [] if plan.timing is None else plan.timing.rewrites
            if rewrites:
                case.exact(rewritten(ir.from_proto(before), rewrites), "rewrite exactly")
            plan = network.factorize(plan)
            model = finished(rewritten(model, rewrites), wanted)
            content = case.content(model)
            if self.wish.budget_bytes is not None:
                _require_fits(model, self.wish.budget_bytes)
            checks = [*case.checks, *(require(lossy_check(truth, content, "factorise")) for truth in case.originals)]
            if self.wish.time is not None and plan.timing is not None:
                timing = self._measured(plan.timing, source, before, model, folder)
                plan = plan.model_copy(update={"timing": timing})
            damage = None
            if samples is not None:
                damage = damage_of(before, ir.to_proto(model), samples, samples.count)
        parity = Parity(checks=checks, damage=damage)
        done = done.model_copy(update={"plan": plan, "damage": damage})
        return [_summary(folder, done), *extra, *written(folder, name, model, plan, parity)]

    def _timed_plan(
        self, network: Network, source: Path, groups: dict[str, GroupDecision], dense_macs: dict[str, int | None]
    ) -> tuple[Plan, Network, Frontier | None]:
        """The plan with the least damage in the time there is, or the least time for the damage allowed; and the
        network as narrow as it says; and the curves where they are asked for.
        """
        assert self.watch is not None, "a budget of time needs a device"
        assert self.wish.time is not None, "asked for"
        model, tile = network.model, self.wish.tile
        scored = network.scored(self.wish.forms, tile, keep=self.wish.keep)
        widths = None
        if self.wish.widths:
            channels = Channels(model, network.samples, self.report)
            widths = Widths(channels, tile, {name: one.scale for name, one in scored.items()}, self.report)
        candidates = {name: one.candidates for name, one in scored.items()}
        watch, original = self.watch, embedded(source)
        if self.int8 is not None:  # which folds first
            watch, original = int8_watch(watch, self.int8), serialize(model)
        search = Search(model, original, candidates, widths, watch, self.report)
        judge = None
        if self.wish.time.drop is not None or (self.frontier and network.samples is not None):
            judge = Judge(network, widths, tile)
        found = choose(search, self.wish.time, self.device, self.report, judge)
        if self.int8 is not None:
            found.timing = found.timing.model_copy(update={"precision": "int8"})
        drawn = self._curves(search, network, scored, judge) if self.frontier else None
        if widths is not None and widths.dead(found.widths):
            pruned = widths.apply(model, found.widths, tile, network.samples, self.report)
            groups = merged(groups, pruned)
            network = Network(model, network.samples, self.report, network.original, kept_by_layer(pruned))
        layers = {layer.name: timed_decision(layer, found, self.wish, dense_macs) for layer in layers_of(model)}
        return Plan(tile=tile, groups=groups, layers=layers, timing=found.timing), network, drawn

    def _curves(self, search: Search, network: Network, scored: Mapping[str, Scored], judge: Judge | None) -> Frontier:
        samples, metric = network.samples, "damage"
        found = curves(search, network.model, scored, self.wish.tile, judge and judge.damage, self.report)
        if samples is not None and all(point.drop is not None for curve in found for point in curve.points):
            metric = "agreement" if samples.labels is None else "top-1"
        return Frontier(
            device=self.device,
            threads=search.watch.options.threads,
            n=0 if samples is None else samples.count // 2,
            metric=metric,
            curves=found,
        )

    def _measured(
        self, timing: PlanTiming, source: Path, folded: onnx.ModelProto, model: ir.Model, folder: Path
    ) -> PlanTiming:
        """With what launch pairs of the two files say, or a count of their instructions. Raises CheckFailed where that
        is over the budget.
        """
        assert self.watch is not None, "a budget of time needs a device"
        assert self.wish.time is not None, "asked for"
        content = serialize(model)
        if self.watch.cost == "instructions":
            found = self.watch.timed(embedded(source), [content], whole=True, launches=1)
            return counted(timing, found[key_of(content)].ratio)
        with TemporaryDirectory(dir=folder) as made:
            small, original = Path(made) / "small.onnx", source
            if self.int8 is not None:
                content, original = in_int8(content, self.int8), Path(made) / "original.onnx"
                original.write_bytes(in_int8(folded.SerializeToString(), self.int8))
            small.write_bytes(content)
            bench = measure(
                [("original", original), ("small", small)],
                self.watch.transport,
                card.find(self.device),
                self.watch.options,
                lambda now: self.report("measuring", now.done, now.total),
            )
        return judged(timing, bench.comparisons[0], self.wish.time, undisturbed(samples_of(bench.pairs, "small")))

    def _require_judge(self, model: ir.Model, samples: Samples | None) -> None:
        """Raises InputError now for what could not be judged after hours of timing."""
        if self.wish.time is None:
            return
        if self.wish.time.drop is not None:
            require_classes(ir.to_proto(model), require_enough(samples, "--max-drop"))
        elif self.frontier and samples is not None:
            require_enough(samples, "--frontier")

    def _samples(self, model: ir.Model) -> Samples | None:
        if self.data is None:
            return None
        return first(self.data, self.most, self.how, ir.to_proto(model))


def _summary(folder: Path, done: Compressed) -> str:
    done.write(folder / _SUMMARY)
    return _SUMMARY


def frontier_name(name: str) -> str:
    """`small.onnx` → `small.frontier.json`."""
    return f"{name.removesuffix('.onnx')}.frontier.json"


def _require_fits(model: ir.Model, budget_bytes: int) -> None:
    found = ir.to_proto(model).ByteSize() + BYTES_A_LAYER
    if found > budget_bytes:
        raise CheckFailed(
            f"expected a file of at most {budget_bytes} bytes, found {found}; allow that, or give a --tile"
        )
