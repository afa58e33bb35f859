"""Any ONNX graph in, a smaller graph that does nearly the same out: `rankfold compress`.

First everything that is exact (`fold`), then a form and a rank for every layer: by energy, or by the damage each
would do for the MACs it saves. With calibration data both the choice and the factors go by outputs, layer after
layer, each seeing what the compressed network before it puts out; without data, by the kernels alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx_ir as ir

from ..devices import card
from ..errors import CheckFailed, InputError
from ..files import sha256_of
from ..records import (
    Compressed,
    Frontier,
    FrontierPoint,
    GroupDecision,
    LayerDecision,
    Parity,
    Plan,
    PlanTiming,
    kept_by_layer,
)
from ..runtime.inputs import Given
from ..runtime.latency import Stopwatch, key_of
from ..runtime.measure import measure
from ..runtime.onnxfile import embedded
from ..runtime.stats import samples_of, undisturbed
from .budget import Budget, Chosen, choose, counted, judged
from .calibration import Preprocess, Samples, first
from .choose import plan_by_energy
from .damage import Candidate, Objective, Scored, damage_of
from .fold import finished, naming, opened, record_names, written
from .forms import resolve_any
from .frontier import Step, frontier, within
from .graphs import serialize
from .int8_times import in_int8, int8_watch
from .judge import Judge, require_classes, require_enough
from .layers import Layer, layers_of, require_known
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

AUTO_FORMS = ("channel", "input-channel", "spatial", "tucker-2", "linear")
_SUMMARY = "compressed.json"
_BYTES = 4  # of a float32 weight
_BYTES_A_LAYER = 1200  # of names, attributes and shapes of its factors, and of its decision in the metadata


@dataclass(frozen=True)
class Wish:
    """What is wanted, one of: `energy` (share of Σσ), `macs` (share of the folded model's), `budget_bytes` (of the
    file), `time` (on a device), `plan`.

    `prune` is the share of the MACs that goes in whole channels before; without the others nothing is factorised.
    With `widths` a budget of time may be met by fewer channels too.
    """

    forms: Sequence[str] = AUTO_FORMS
    energy: float | None = None
    macs: float | None = None
    budget_bytes: int | None = None
    time: Budget | None = None
    plan: Plan | None = None
    prune: float | None = None
    widths: bool = False
    tile: int = 1
    keep: Sequence[str] = ()

    def __post_init__(self) -> None:
        asked = (self.energy, self.macs, self.budget_bytes, self.time, self.plan)
        given = [what for what in asked if what is not None]
        if len(given) > 1 or (not given and self.prune is None):
            raise InputError(
                "give limits (--budget, --latency, --damage, --max-drop), or one of --energy, --macs, --budget-bytes "
                "and --plan, or --prune"
            )
        if self.widths and self.time is None:
            raise InputError(
                "--widths: goes with --budget, --latency, --damage or --max-drop; see --prune for the others"
            )
        if self.keep and self.plan is not None:
            raise InputError("--keep: a --plan decides on every layer itself; give one of them")
        if self.budget_bytes is not None and self.budget_bytes < 1:
            raise InputError(f"--budget-bytes: expected at least 1, found {self.budget_bytes}")
        if self.prune is not None and self.widths:
            raise InputError("--widths chooses how wide the network is; give it without --prune")
        if self.prune is not None and self.prune >= 1:
            raise InputError(f"--prune: expected a share below 1, found {self.prune}")
        for name, share in (("--energy", self.energy), ("--macs", self.macs), ("--prune", self.prune)):
            if share is not None and not 0 < share <= 1:
                raise InputError(f"{name}: expected a share in (0, 1], found {share}")

    @property
    def objective(self) -> Objective:
        """What is to become less."""
        return "macs" if self.budget_bytes is None else "parameters"


def plan_of(
    network: Network,
    wish: Wish,
    steps: Sequence[Step],
    groups: dict[str, GroupDecision],
    dense_macs: dict[str, int | None],
) -> Plan:
    """A decision and a reason for every layer; `steps` are `steps_of` where MACs are wished for."""
    if wish.plan is not None:
        return unmeasured(wish.plan)
    if wish.macs is None and wish.budget_bytes is None and wish.energy is None:
        layers = {
            layer.name: _dense(layer, dense_macs, "only channels were to go") for layer in layers_of(network.model)
        }
        return Plan(tile=wish.tile, groups=groups, layers=layers)
    if wish.energy is not None:
        form = wish.forms[0] if len(wish.forms) == 1 else "channel"
        return plan_by_energy(
            network.model,
            form=form,
            energy=wish.energy,
            tile=wish.tile,
            keep=wish.keep,
            groups=groups,
            dense_macs=dense_macs,
        )
    if not steps[0].cost:
        raise CheckFailed("expected layers whose MACs are known, found none; give the input's sizes with --shape")
    if wish.budget_bytes is not None:
        step = within(steps, _weights_within(wish.budget_bytes, network), "weights in the layers")
    else:
        assert wish.macs is not None, "Wish has checked it"
        step = within(steps, round(wish.macs * steps[0].cost))
    layers = {layer.name: _decided(layer, step, wish, dense_macs) for layer in layers_of(network.model)}
    return Plan(tile=wish.tile, groups=groups, layers=layers)


def unmeasured(plan: Plan) -> Plan:
    """Without what was measured of the file that the plan was first made for."""
    if plan.timing is None:
        return plan
    timing = plan.timing.model_copy(update={"measured": None, "low": None, "high": None, "verdict": "", "drop": None})
    return plan.model_copy(update={"timing": timing})


def steps_of(network: Network, wish: Wish) -> list[Step]:
    """The frontier of MACs (or weights) and damage, from the folded model downwards."""
    layers = layers_of(network.model)
    if wish.objective == "macs":
        dense = {layer.name: layer.macs for layer in layers if layer.macs is not None}
    else:
        dense = _weights(layers)
    scored = network.scored(wish.forms, wish.tile, wish.objective, wish.keep)
    return frontier(dense, {name: one.candidates for name, one in scored.items()}, wish.objective)


def _weights(layers: Sequence[Layer]) -> dict[str, int]:
    return {layer.name: layer.kernel.size for layer in layers if not layer.closed}


def _weights_within(budget_bytes: int, network: Network) -> int:
    """Weights that the open layers may have in a file of so many bytes: all else stays, each new node takes some."""
    weights = _weights(layers_of(network.model))
    rest = network.original.ByteSize() - _BYTES * sum(weights.values()) + _BYTES_A_LAYER * len(weights)
    return max((budget_bytes - rest) // _BYTES, 0)


def _decided(layer: Layer, step: Step, wish: Wish, dense_macs: dict[str, int | None]) -> LayerDecision:
    chosen = step.chosen.get(layer.name)
    if layer.closed or layer.name in wish.keep:
        return _dense(layer, dense_macs, layer.closed or "kept by name")
    if chosen is None or layer.macs is None:
        return _dense(layer, dense_macs, "every candidate would damage more for each MAC than those taken elsewhere")
    reason = f"{layer.macs / chosen.macs:.2f}× fewer MACs for {chosen.loss:.2%} of the layer's output"
    return _factored(layer, chosen, reason, dense_macs)


def _timed_decision(layer: Layer, found: Chosen, wish: Wish, dense_macs: dict[str, int | None]) -> LayerDecision:
    chosen, ratio = found.candidates.get(layer.name), found.ratios.get(layer.name)
    if layer.closed or layer.name in wish.keep:
        return _dense(layer, dense_macs, layer.closed or "kept by name")
    if chosen is None or ratio is None:
        cost = found.timing.cost
        why = f"what factors would save in {cost} is worth less than the damage"
        why = found.returned.get(layer.name, why if ratio is None else f"{ratio:.2f} of its {cost}, being narrower")
        return _dense(layer, dense_macs, why).model_copy(update={"predicted": ratio})
    reason = f"{ratio:.2f} of the dense layer's {found.timing.cost}, for {chosen.loss:.2%} of its output"
    return _factored(layer, chosen, reason, dense_macs).model_copy(update={"predicted": ratio})


def _factored(layer: Layer, chosen: Candidate, reason: str, dense_macs: dict[str, int | None]) -> LayerDecision:
    return LayerDecision.model_validate(
        {
            "form": chosen.form,
            "ranks": list(chosen.ranks),
            "full_rank": resolve_any(chosen.form, layer.shape).full_rank(layer.shape),
            "loss": chosen.loss,
            "reason": reason,
            "macs_dense": dense_macs.get(layer.name, layer.macs),
            "macs": chosen.macs,
        }
    )


def _dense(layer: Layer, dense_macs: dict[str, int | None], reason: str) -> LayerDecision:
    return LayerDecision(
        form="dense", reason=reason, macs_dense=dense_macs.get(layer.name, layer.macs), macs=layer.macs
    )


def merged(folded: dict[str, GroupDecision], pruned: dict[str, GroupDecision]) -> dict[str, GroupDecision]:
    """The decisions of folding and, counted in the same channels, of pruning after it."""
    joined = dict(folded)
    for name, after in pruned.items():
        before = folded.get(name)
        if before is None or len(after.kept) == after.channels:
            continue
        kept = [before.kept[channel] for channel in after.kept] if len(before.kept) == after.channels else after.kept
        reason = f"{before.reason}; {after.channels - len(after.kept)} pruned: those that their readers miss least"
        joined[name] = before.model_copy(update={"kept": kept, "reason": reason})
    return joined


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
        layers = {layer.name: _timed_decision(layer, found, self.wish, dense_macs) for layer in layers_of(model)}
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
    found = ir.to_proto(model).ByteSize() + _BYTES_A_LAYER
    if found > budget_bytes:
        raise CheckFailed(
            f"expected a file of at most {budget_bytes} bytes, found {found}; allow that, or give a --tile"
        )


def frontier_points(steps: Sequence[Step]) -> list[FrontierPoint]:
    """The first step at or below each tenth of the dense cost, as far as there is one."""
    points, dense = [], steps[0].cost if steps else 0
    for tenth in range(10, 0, -1):
        step = next((step for step in steps if step.cost <= dense * tenth / 10), None)
        if step is not None:
            layers = sum(chosen is not None for chosen in step.chosen.values())
            points.append(FrontierPoint(share=step.cost / dense, cost=step.cost, layers=layers, damage=step.damage))
    return points
