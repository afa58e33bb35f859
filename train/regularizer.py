"""CompressionAware: three lines that make a network small while it learns.

    regularizer = CompressionAware(model, optimizer, low_rank=3e-3, group=1e-3)
    for inputs, labels in batches:
        ...; optimizer.step()
        regularizer.step()
    regularizer.finish()

Alvarez & Salzmann, "Compression-aware Training of Deep Networks", NIPS 2017: mean loss + τ Σ‖Mₗ‖_* (nuclear
norm of each matricised kernel) + λ Σ_g √P_g‖w_g‖₂ (filters as groups). The loss goes by gradient steps, the
penalties by their exact proximal operators: low rank first, then groups, an alternation as in the paper.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import InputError
from ..export.forms import FORMS
from ..export.grid import strengths_by_time, useful_ranks
from ..records import Event, LayerSummary, LayerTable, LayerTime, Solver, TargetReached
from . import checkpoint, processes
from .exported import Exported
from .groups import coupled_families, filter_families
from .layers import Scale, layers_of, record_pixels, strengths
from .proximal import SOLVERS
from .shrinking import Held, Shrinking
from .steering import Target, seek, target_of, way
from .strength import Strengths

_log = logging.getLogger(__name__)


class CompressionAware:
    """Takes the proximal steps of both penalties on every convolution and linear layer of `model`.

    low_rank   τ, per unit of step size.
    group      λ. A group is a filter with its BatchNorm scale and shift (or its bias); it becomes exactly zero.
               The layers whose output leaves the model have no groups.
    groups     'filter': each filter alone. 'coupled': filters that live and die together (those that a residual
               add joins, say) are one group, found in the graph that `example_input` (n×…) is exported with.
    alpha      share of elementwise sparsity inside the groups; it raises the rank again, so 0 where τ > 0.
    form       how kernels are matricised (`export.forms`); pointwise kernels and linear layers are o×i.
    every      optimizer steps between proximal steps; thresholds use the sum of the step sizes since the last.
    solver     how singular values are found (`proximal.nuclear_norm_prox`); the last step is exact with any.
    scale      'folded': act on the BatchNorm-folded kernel; 'raw': on the kernel as it is.
    relative   τ is a share of each layer's σ₁, and λ of the mean norm of its live groups (in place of √P_g): one
               strength then means the same in every layer.
    start_at   optimizer steps before the first proximal step.
    ramp       optimizer steps after that in which the strengths rise from 0, in proportion.
    hold_at    optimizer step from which the strengths are 0 and the structure reached is kept by projection:
               the rank that holds `energy` of Σσ, and the live filters, both rounded to the nearest multiple
               of `tile`. None: never.
    hold_macs  share of the dense MACs: hold as soon as the network, exported as it is, would have no more.
    target_macs, target_params, target_latency    share of the dense MACs, of the layers' weights, or by `table` of its
               layers' time (then τ alone is steered: the table has no times of narrower layers): hold as soon as the
               network would have no more, and seek the strengths so that this is at `hold_at`. Only the ratio of
               `low_rank` and `group` matters then. The strongest singular value and filter of a layer stay.
               `missed()` says if it did not get there.
    guard      where a step would leave nothing of a layer, it is taken gently, that layer's strengths are lowered for
               good, and `events` says so. (`train.guard.Guard` also watches the loss.)
    tile       the device's channel multiple. Fewer channels or ranks than one tile are no faster, so with a tile
               above 1 the strongest `tile` singular values and filters of a layer are exempt from shrinkage.
    least      by layer name, filters that stay at least: the strongest so many are exempt from shrinkage.
    skip       names of layers to leave alone.
    table      what a latency table says of the model's layers on a device: rows, or a file of `rankfold latency-table
               show -o`. τ of a layer is then in proportion to the time it can save in its form (1 on average, 0 where
               no rank is faster than dense), and ranks are held at those that are faster, not at multiples of the tile.
    low_rank_factors, group_factors    by layer name, multiples of τ and λ; 1 where a layer is not named.

    Steps that a gradient scaler skips do not count. All state is in `state_dict()`.

    Where torch.distributed is initialised, the processes hold one network (`model` may be the DistributedDataParallel):
    the decompositions are shared out over them, and BatchNorm's variances are those of process 0, as in the next
    forward.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        low_rank: float = 0.0,
        group: float = 0.0,
        alpha: float = 0.0,
        form: str = "channel",
        every: int = 10,
        solver: Solver = "gram",
        scale: Scale = "folded",
        relative: bool = False,
        groups: Literal["filter", "coupled"] = "filter",
        example_input: Tensor | None = None,
        start_at: int = 0,
        ramp: int = 0,
        hold_at: int | None = None,
        hold_macs: float | None = None,
        target_macs: float | None = None,
        target_params: float | None = None,
        target_latency: float | None = None,
        tile: int = 1,
        energy: float = 1.0,
        least: Mapping[str, int] | None = None,
        skip: tuple[str, ...] = (),
        low_rank_factors: Mapping[str, float] | None = None,
        group_factors: Mapping[str, float] | None = None,
        table: Sequence[LayerTime] | Path | str | None = None,
        guard: bool = True,
    ) -> None:
        if groups not in ("filter", "coupled"):
            raise InputError(f"unknown groups '{groups}'; use 'filter' or 'coupled'")
        if groups == "coupled" and example_input is None:
            raise InputError("groups='coupled' needs an example_input, to follow the channels through the model")
        if solver not in SOLVERS:
            raise InputError(f"unknown solver '{solver}'; use one of {', '.join(SOLVERS)}")
        if form not in FORMS:
            raise InputError(f"unknown form '{form}'; use one of {', '.join(FORMS)}")
        for name, value in (("low_rank", low_rank), ("group", group)):
            if value < 0:
                raise InputError(f"{name} must be 0 or more, found {value}")
        if every < 1 or tile < 1 or not 0 <= alpha <= 1 or not 0 < energy <= 1:
            raise InputError("every and tile must be 1 or more, alpha within 0..1, energy within 0..1 and above 0")
        model = model.module if isinstance(model, DistributedDataParallel) else model
        self.low_rank, self.group, self.alpha = low_rank, group, alpha
        self.every, self.form = every, form
        self.solver: Solver = solver
        self.scale: Scale = scale
        self.relative = relative
        self.start_at, self.ramp, self.hold_at = start_at, ramp, hold_at
        self.tile, self.energy, self.guard = tile, energy, guard
        self.model, self.optimizer = model, optimizer
        self.layers = layers_of(model, form, skip, needs_trace=group > 0 or scale == "folded")
        tau = strengths(self.layers, low_rank, low_rank_factors or {})
        self.table = LayerTable.read(table).rows if isinstance(table, Path | str) else table
        self.target = target_of(
            hold_macs,
            {"macs": target_macs, "params": target_params, "latency": target_latency},
            moments=(start_at, hold_at),
            strengths=(low_rank, group),
            solver=solver,
            has_table=table is not None,
        )
        useful: dict[str, list[int]] = {}
        if self.table is not None and low_rank > 0:
            forms = {name: layer.form.name for name, layer in self.layers.items() if layer.form is not None}
            by_time = strengths_by_time(self.table, forms)
            tau = {name: value * by_time.get(name, 0.0) for name, value in tau.items()}
            useful = {name: useful_ranks(self.table, name, forms[name]) for name in forms if by_time[name]}
        grouped = {name: layer for name, layer in self.layers.items() if layer.has_groups}
        self._strengths = Strengths(
            tau,
            dict.fromkeys(self.layers, 0.0) | strengths(grouped, group, group_factors or {}),
            start_at=start_at,
            ramp=ramp,
            tau_alone=target_latency is not None,
        )
        silenced = [name for name, layer in self.layers.items() if layer.has_groups and layer.is_silenced()]
        if silenced and start_at == 0:
            raise InputError(
                f"the BatchNorm of layer '{silenced[0]}' starts at γ = 0, so its filters look dead; give start_at, "
                "or initialise γ otherwise"
            )
        unknown = [name for name in least or {} if name not in self.layers]
        if unknown:
            raise InputError(f"least names no layer '{unknown[0]}'; the layers are {', '.join(self.layers)}")
        if groups == "coupled" and group > 0:
            assert example_input is not None
            families = coupled_families(model, self.layers, example_input)
        else:
            families = filter_families(self.layers.values())
        self._exported = Exported(
            self.layers,
            scale,
            tile,
            energy,
            factored={name for name, value in tau.items() if value},
            pixels=record_pixels(self.layers),
            table=self.table,
            useful=useful,
        )
        self._shrinking = Shrinking(
            self.layers,
            families,
            self._strengths,
            self._exported,
            optimizer,
            alpha=alpha,
            relative=relative,
            guard=guard,
            exempt=tile if tile > 1 else int(self.is_steered),  # a search for strength may try any
            least=dict(least or {}),
        )
        self._held_from: int | None = None
        self._told = 0
        optimizer.register_step_post_hook(self._count)

    # --- the three lines ------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self) -> bool:
        """Call after every `optimizer.step()`; takes a proximal step when one is due and says whether it did."""
        now = self._shrinking
        due = now.steps > self.start_at and now.steps % self.every == 0 and any(now.pending)
        if now.held is None and self.target is not None and self.target.steered:
            small_enough = due and self._steer(self.target)
        else:
            if due:
                now.act(self.solver)
            small_enough = now.held is None and self._is_small_enough(due)
        if small_enough:
            self.hold()
        self._tell_new()
        return due

    @torch.no_grad()
    def finish(self) -> None:
        """The last exact proximal step or projection: afterwards zeros are zeros and ranks are ranks."""
        self._shrinking.act()
        self._tell_new()
        if (missed := self.missed()) is not None:
            _tell(missed)

    @torch.no_grad()
    def hold(self) -> None:
        """Release the strengths and keep, from now on, the structure reached: ranks and live filters."""
        self._held_from = self._shrinking.steps
        self._shrinking.hold()

    def relent(self, why: str) -> None:
        """Lower all strengths for good; what was held is free again. For a network that went back to a better state."""
        self._strengths.relent()
        self._shrinking.held = self._held_from = None
        self._shrinking.rest()
        why += f"; back to the last good state, strengths at {self.strength:.3g} of those given"
        self._shrinking.note(None, why)
        self._tell_new()

    # --- what one sees --------------------------------------------------------------------------------------

    @torch.no_grad()
    def penalty(self) -> float:
        """τ Σ‖Mₗ‖_* + λ Σ(sparse group norms), of the kernels that the steps act on."""
        return self._shrinking.penalty()

    def macs(self) -> tuple[int, int]:
        """(multiply-accumulates if exported now, of the dense network) for one image, after a first forward."""
        now, dense = self._exported.measured("macs")
        return int(now), int(dense)

    @property
    def strength(self) -> float:
        """What the strengths given are multiplied with, where they are steered or had to be lowered; 1 otherwise."""
        return self._strengths.multiple

    @property
    def is_steered(self) -> bool:
        """Whether the strengths are sought, so that the network comes to a target."""
        return self.target is not None and self.target.steered

    @property
    def is_held(self) -> bool:
        """Whether the strengths are released and the structure reached is kept."""
        return self._shrinking.held is not None

    @property
    def events(self) -> list[Event]:
        """Where a strength had to be lowered, and why."""
        return self._shrinking.events

    def reached(self) -> TargetReached | None:
        """The target, what the network would have if it were exported now, and since when its structure is held."""
        if self.target is None:
            return None
        of, share = self.target.of, self.target.share
        now, dense = self._exported.measured(of)
        return TargetReached(of=of, wanted=share, reached=now / dense, held_from=self._held_from)

    def missed(self) -> str | None:
        """What to change where the network has not come to its target; None where it has, or holds what it has."""
        found = self.reached()
        if found is None or self.is_held or found.reached <= found.wanted:
            return None
        if not self.is_steered:
            remedy = "raise low_rank or group, or give target_macs in place of hold_macs: it seeks them"
        elif self._strengths.relief < 1:
            remedy = "it collapsed at stronger steps: give it more steps or a higher target"
        else:
            remedy = "see what has to stay (tile, least, skip, factors of 0, group = 0), or give a higher target"
        return f"of the dense {found.of} {found.reached:.1%} are left, {found.wanted:.1%} were wanted; {remedy}"

    @torch.no_grad()
    def summary(self) -> list[LayerSummary]:
        """Rank at export, live filters and energy of every layer."""
        return [self._exported.summary(layer) for layer in self.layers.values()]

    def compact(self, example_input: Tensor) -> nn.Module:
        """A small copy of the model: factors and narrower layers, BatchNorm kept; it does what `export` would write.

        `example_input` is a batch of its input. Raises InputError where the model's own code fixes a width.
        """
        from .compact import compact, exported  # late: training alone needs no onnx

        small, plan = exported(
            self.model, example_input, form=self.form, energy=self.energy, tile=self.tile, table=self.table
        )
        return compact(self.model, small, plan, example_input)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        now = self._shrinking
        held = now.held and {name: [h.rank, h.dead] for name, h in now.held.items()}
        table = self.table and [row.model_dump(mode="json") for row in self.table]
        return {
            "steps": now.steps,
            "pending": list(now.pending),
            "held": held,
            "held_from": self._held_from,
            "table": table,
            "strengths": self._strengths.state_dict(),
            "events": [event.model_dump(mode="json") for event in now.events],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict()` was made. Raises InputError where that was by another latency table."""
        if state.get("table") != self.state_dict()["table"]:
            raise InputError("the latency table is not the one that this training began with; put that back")
        now, held = self._shrinking, state["held"]
        now.steps, now.pending = state["steps"], list(state["pending"])
        now.held = None if held is None else {name: Held(rank, dead) for name, (rank, dead) in held.items()}
        if "strengths" in state:  # not in checkpoints of before
            self._held_from = state["held_from"]
            self._strengths.load_state_dict(state["strengths"])
            now.events = [Event.model_validate(event) for event in state["events"]]
        self._told = len(now.events)

    # --- when and how strongly --------------------------------------------------------------------------------

    def _count(self, *_: object) -> None:
        self._shrinking.count(self.start_at)

    def _is_small_enough(self, acted: bool) -> bool:
        if self.hold_at is not None and self._shrinking.steps >= self.hold_at:
            return True
        if self.target is None or not acted:
            return False
        now, dense = self._exported.measured(self.target.of)
        return now <= self.target.share * dense

    def _steer(self, target: Target) -> bool:
        """A proximal step of the strength that leaves the network on its way; whether it has come to the target."""
        assert self.hold_at is not None, "a steered target has its moment"
        before, pending = checkpoint.copy_of(self.model, self.optimizer), self._shrinking.pending
        left = 1.0

        def take(strength: float) -> float:
            nonlocal left
            checkpoint.put_back(before, self.model, self.optimizer)
            self._shrinking.pending, self._strengths.steered = list(pending), strength
            self._shrinking.act(self.solver)
            now, dense = self._exported.measured(target.of)
            left = now / dense
            return left

        progress = (self._shrinking.steps - self.start_at) / (self.hold_at - self.start_at)
        wanted = way(target.share, progress)
        strength, most = self._strengths.steered, self._strengths.most
        self._strengths.steered = seek(take, strength, wanted, most=most, last=progress >= 1)
        return left <= target.share

    def _tell_new(self) -> None:
        for event in self.events[self._told :]:
            _tell(event.line())
        self._told = len(self.events)


def _tell(line: str) -> None:
    if processes.own() == 0:
        _log.warning("%s", line)
