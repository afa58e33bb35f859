"""What is wanted of a compression, and the plan that says it layer by layer: a form, a rank and a reason for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import CheckFailed, InputError
from ..records import FrontierPoint, GroupDecision, LayerDecision, Plan
from .budget import Budget, Chosen
from .choose import plan_by_energy
from .damage import Candidate, Objective
from .forms import resolve_any
from .frontier import Step, frontier, within
from .layers import Layer, layers_of
from .network import Network

AUTO_FORMS = ("channel", "input-channel", "spatial", "tucker-2", "linear")
_BYTES = 4  # of a float32 weight
BYTES_A_LAYER = 1200  # of names, attributes and shapes of its factors, and of its decision in the metadata


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
    rest = network.original.ByteSize() - _BYTES * sum(weights.values()) + BYTES_A_LAYER * len(weights)
    return max((budget_bytes - rest) // _BYTES, 0)


def _decided(layer: Layer, step: Step, wish: Wish, dense_macs: dict[str, int | None]) -> LayerDecision:
    chosen = step.chosen.get(layer.name)
    if layer.closed or layer.name in wish.keep:
        return _dense(layer, dense_macs, layer.closed or "kept by name")
    if chosen is None or layer.macs is None:
        return _dense(layer, dense_macs, "every candidate would damage more for each MAC than those taken elsewhere")
    reason = f"{layer.macs / chosen.macs:.2f}× fewer MACs for {chosen.loss:.2%} of the layer's output"
    return _factored(layer, chosen, reason, dense_macs)


def timed_decision(layer: Layer, found: Chosen, wish: Wish, dense_macs: dict[str, int | None]) -> LayerDecision:
    """What a search by time has found for a layer."""
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


def frontier_points(steps: Sequence[Step]) -> list[FrontierPoint]:
    """The first step at or below each tenth of the dense cost, as far as there is one."""
    points, dense = [], steps[0].cost if steps else 0
    for tenth in range(10, 0, -1):
        step = next((step for step in steps if step.cost <= dense * tenth / 10), None)
        if step is not None:
            layers = sum(chosen is not None for chosen in step.chosen.values())
            points.append(FrontierPoint(share=step.cost / dense, cost=step.cost, layers=layers, damage=step.damage))
    return points
