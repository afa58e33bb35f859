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
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import InputError
from ..export.forms import FORMS, Form
from ..export.grid import strengths_by_time, useful_ranks
from ..export.tile import nearest_tile
from ..records import Event, LayerSummary, LayerTable, LayerTime, Solver, TargetReached
from . import checkpoint, processes
from .exported import Exported
from .groups import Family, coupled_families, filter_families
from .layers import (
    Layer,
    Scale,
    layers_of,
    matricize,
    parameter_groups,
    record_pixels,
    strengths,
    tensorize,
)
from .proximal import (
    SOLVERS,
    DivergedError,
    nuclear_norm,
    nuclear_norm_prox,
    singular_values,
    sparse_group_norm,
    sparse_group_prox,
    truncate_rank,
)
from .steering import Target, seek, target_of, way
from .strength import Kind, Strengths

GENTLE = 0.1  # of its largest singular value, or strongest group: what a step takes of a layer that was about to vanish
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Held:
    """What a layer keeps from the moment the strengths are released: a rank (None: any) and its filters."""

    rank: int | None
    dead: list[int]


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
        self._useful: dict[str, list[int]] = {}
        if self.table is not None and low_rank > 0:
            forms = {name: layer.form.name for name, layer in self.layers.items() if layer.form is not None}
            by_time = strengths_by_time(self.table, forms)
            tau = {name: value * by_time.get(name, 0.0) for name, value in tau.items()}
            self._useful = {name: useful_ranks(self.table, name, forms[name]) for name in forms if by_time[name]}
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
        if groups == "coupled" and group > 0:
            assert example_input is not None
            self._families = coupled_families(model, self.layers, example_input)
        else:
            self._families = filter_families(self.layers.values())
        self._lr_group = parameter_groups(optimizer, self.layers)
        self._pending = [0.0] * len(optimizer.param_groups)
        self._steps = 0
        steered = self.target is not None and self.target.steered
        self._exempt = tile if tile > 1 else int(steered)  # a search for strength may try any
        self._least = dict(least or {})
        unknown = [name for name in self._least if name not in self.layers]
        if unknown:
            raise InputError(f"least names no layer '{unknown[0]}'; the layers are {', '.join(self.layers)}")
        self._held: dict[str, Held] | None = None
        self._held_from: int | None = None
        self.events: list[Event] = []
        self._told = 0
        self._exported = Exported(
            self.layers,
            scale,
            tile,
            energy,
            factored={name for name, value in tau.items() if value},
            pixels=record_pixels(self.layers),
            table=self.table,
            useful=self._useful,
        )
        optimizer.register_step_post_hook(self._count)

    # --- the three lines ------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self) -> bool:
        """Call after every `optimizer.step()`; takes a proximal step when one is due and says whether it did."""
        due = self._steps > self.start_at and self._steps % self.every == 0 and any(self._pending)
        if self._held is None and self.target is not None and self.target.steered:
            small_enough = due and self._steer(self.target)
        else:
            if due:
                self._act(self.solver)
            small_enough = self._held is None and self._is_small_enough(due)
        if small_enough:
            self.hold()
        self._tell_new()
        return due

    @torch.no_grad()
    def finish(self) -> None:
        """The last exact proximal step or projection: afterwards zeros are zeros and ranks are ranks."""
        self._act()
        self._tell_new()
        if (missed := self.missed()) is not None:
            _tell(missed)

    @torch.no_grad()
    def hold(self) -> None:
        """Release the strengths and keep, from now on, the structure reached: ranks and live filters."""
        for family in self._families:
            family.kill(self._dead_at_hold(family), self.optimizer)
        self._held, self._held_from = {}, self._steps
        for name, layer in self.layers.items():
            rank = self._exported.layer(layer)[1]
            dead = (~layer.live()).nonzero().flatten().tolist() if layer.has_groups else []
            self._held[name] = Held(rank, dead)
        self._act()

    def relent(self, why: str) -> None:
        """Lower all strengths for good; what was held is free again. For a network that went back to a better state."""
        self._strengths.relent()
        self._held = self._held_from = None
        self._pending = [0.0] * len(self._pending)
        self._report(None, f"{why}; back to the last good state, strengths at {self.strength:.3g} of those given")
        self._tell_new()

    # --- what one sees --------------------------------------------------------------------------------------

    @torch.no_grad()
    def penalty(self) -> float:
        """τ Σ‖Mₗ‖_* + λ Σ(sparse group norms), of the kernels that the steps act on."""
        total = 0.0
        for layer in self.layers.values():
            kernel = layer.kernel(self.scale)
            tau = self._strengths.tau[layer.name]
            if tau and (form := layer.form):
                total += tau * nuclear_norm(matricize(form, kernel))
        for family in self._families:
            rows = family.rows(self._kernels(family))
            total += self._strengths.given(_names(family)) * sparse_group_norm(rows, self.alpha, rows.shape[1])
        return total

    def macs(self) -> tuple[int, int]:
        """(multiply-accumulates if exported now, of the dense network) for one image, after a first forward."""
        now, dense = self._exported.measured("macs")
        return int(now), int(dense)

    @property
    def strength(self) -> float:
        """What the strengths given are multiplied with, where they are steered or had to be lowered; 1 otherwise."""
        return self._strengths.multiple

    @property
    def is_held(self) -> bool:
        """Whether the strengths are released and the structure reached is kept."""
        return self._held is not None

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
        if found is None or self._held is not None or found.reached <= found.wanted:
            return None
        if self.target is not None and not self.target.steered:
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
        held = self._held and {name: [h.rank, h.dead] for name, h in self._held.items()}
        table = self.table and [row.model_dump(mode="json") for row in self.table]
        return {
            "steps": self._steps,
            "pending": list(self._pending),
            "held": held,
            "held_from": self._held_from,
            "table": table,
            "strengths": self._strengths.state_dict(),
            "events": [event.model_dump(mode="json") for event in self.events],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict()` was made. Raises InputError where that was by another latency table."""
        if state.get("table") != self.state_dict()["table"]:
            raise InputError("the latency table is not the one that this training began with; put that back")
        self._steps, self._pending = state["steps"], list(state["pending"])
        held = state["held"]
        self._held = None if held is None else {name: Held(rank, dead) for name, (rank, dead) in held.items()}
        if "strengths" in state:  # not in checkpoints of before
            self._held_from = state["held_from"]
            self._strengths.load_state_dict(state["strengths"])
            self.events = [Event.model_validate(event) for event in state["events"]]
        self._told = len(self.events)

    # --- one proximal step ----------------------------------------------------------------------------------

    def _count(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._steps += 1
        if self._steps > self.start_at:
            for index, group in enumerate(optimizer.param_groups):
                self._pending[index] += float(group["lr"])

    def _is_small_enough(self, acted: bool) -> bool:
        if self.hold_at is not None and self._steps >= self.hold_at:
            return True
        if self.target is None or not acted:
            return False
        now, dense = self._exported.measured(self.target.of)
        return now <= self.target.share * dense

    def _steer(self, target: Target) -> bool:
        """A proximal step of the strength that leaves the network on its way; whether it has come to the target."""
        assert self.hold_at is not None, "a steered target has its moment"
        before, pending = checkpoint.copy_of(self.model, self.optimizer), self._pending
        left = 1.0

        def take(strength: float) -> float:
            nonlocal left
            checkpoint.put_back(before, self.model, self.optimizer)
            self._pending, self._strengths.steered = list(pending), strength
            self._act(self.solver)
            now, dense = self._exported.measured(target.of)
            left = now / dense
            return left

        progress = (self._steps - self.start_at) / (self.hold_at - self.start_at)
        wanted = way(target.share, progress)
        strength, most = self._strengths.steered, self._strengths.most
        self._strengths.steered = seek(take, strength, wanted, most=most, last=progress >= 1)
        return left <= target.share

    def _act(self, solver: Solver = "gram") -> None:
        if self._held is not None:
            for layer in self.layers.values():
                layer.kill(self._held[layer.name].dead)
        if self.scale == "folded":
            variances = [layer.norm.running_var for layer in self.layers.values() if layer.norm is not None]
            processes.spread(variance for variance in variances if variance is not None)
        kernels = {layer.name: layer.kernel(self.scale) for layer in self.layers.values()}
        self._lower_ranks(kernels, solver)
        for layer in self.layers.values():
            layer.write(kernels[layer.name], self.scale)
        for family in self._families:
            if self._held is None:
                self._shrink_groups(family)
            family.kill(~family.live(), self.optimizer)
        self._pending = [0.0] * len(self._pending)

    def _lower_ranks(self, kernels: dict[str, Tensor], solver: Solver) -> None:
        """Replace the kernels whose ranks fall. Each process decomposes its share; matrices that one process alone
        would decompose together stay together, so the numbers are the same.
        """
        batches = self._alike(kernels)
        ill = next((name for alike in batches.values() for name in alike if not kernels[name].isfinite().all()), None)
        if ill is not None:
            raise DivergedError(
                f"layer '{ill}', step {self._steps}: its weights hold NaN or infinity: training diverged; lower the "
                "learning rate"
            )
        owners = processes.share_out({key: len(alike) * key[0].numel() * min(key[0]) for key, alike in batches.items()})
        found: dict[Any, tuple[Tensor, Tensor]] = {}
        for key, alike in batches.items():
            matrices = torch.stack(list(alike.values()))
            if owners[key] == processes.own():
                found[key] = self._lowered(list(alike), matrices, key[1], key[2], solver)
            else:
                found[key] = torch.empty_like(matrices), matrices.new_empty(len(alike), dtype=torch.float64)
        for key, (changed, eased) in found.items():
            processes.spread((changed, eased), owners[key])
            for name, matrix, factor in zip(batches[key], changed, eased.tolist(), strict=True):
                kernels[name] = tensorize(self._form(name), matrix, kernels[name])
                if factor < 1:
                    self._ease("low_rank", name, factor, "rank would fall to 0")

    def _lowered(
        self, names: list[str], matrices: Tensor, exempt: int, rank: int | None, solver: Solver
    ) -> tuple[Tensor, Tensor]:
        """The matrices with the ranks they fall to, and by how much the strength of each had to be lowered first."""
        eased = matrices.new_ones(len(names), dtype=torch.float64)
        if rank is not None:
            return truncate_rank(matrices, rank, solver=solver).contiguous(), eased
        cut = torch.tensor([self._cut(name) for name in names], dtype=torch.float64).to(matrices.device)
        changed = nuclear_norm_prox(matrices, cut, exempt, relative=self.relative, solver=solver).contiguous()
        gone = ~changed.flatten(1).any(dim=1) & matrices.flatten(1).any(dim=1)
        if self.guard and gone.any():
            largest = 1.0 if self.relative else singular_values(matrices[gone])[:, 0].to(cut)
            eased[gone] = GENTLE * largest / cut[gone]
            changed[gone] = nuclear_norm_prox(matrices[gone], cut[gone] * eased[gone], relative=self.relative)
        return changed, eased

    def _alike(self, kernels: Mapping[str, Tensor]) -> dict[tuple[torch.Size, int, int | None], dict[str, Tensor]]:
        """The matrices of the layers whose ranks fall now, those that are decomposed together under one key: their
        shape, the singular values exempt from shrinkage, and the rank where it is held.
        """
        found: dict[tuple[torch.Size, int, int | None], dict[str, Tensor]] = defaultdict(dict)
        for name, layer in self.layers.items():
            rank = self._held[name].rank if self._held is not None else None
            if layer.form is None or (rank is None and (self._held is not None or not self._strengths.tau[name])):
                continue
            exempt = self._useful.get(name, [self._exempt])[0] if rank is None else 0
            matrix = matricize(layer.form, kernels[name])
            found[matrix.shape, exempt, rank][name] = matrix
        return found

    def _form(self, name: str) -> Form:
        form = self.layers[name].form
        assert form is not None, "a layer without a form is not decomposed"
        return form

    def _cut(self, name: str) -> float:
        """By how much the singular values of a layer fall now, or by which share of σ₁."""
        return self._step_size(self.layers[name]) * self._strengths.low_rank(name, self._steps)

    def _shrink_groups(self, family: Family) -> None:
        strength = self._strengths.group(_names(family), self._steps) * self._step_size(family.members[0][0])
        if not strength:
            return
        kernels = self._kernels(family)
        rows = family.rows(kernels)
        cut = strength * (_mean_live_norm(rows) if self.relative else 1.0)
        size = 1 if self.relative else rows.shape[1]
        shrunk = sparse_group_prox(rows, cut, self.alpha, size, self._floor(family))
        if self.guard and rows.any() and not shrunk.any():
            largest = float(torch.linalg.vector_norm(rows, dim=1).max())
            factor = min(1.0, GENTLE * largest / (cut * size**0.5))
            self._ease("group", family.members[0][0].name, factor, "last filter would die")
            shrunk = sparse_group_prox(rows, cut * factor, self.alpha, size)
        family.write(shrunk, kernels)
        for layer, _ in family.members:
            layer.write(kernels[layer.name], self.scale)

    def _floor(self, family: Family) -> int:
        """Groups of the family that stay at least."""
        return max(self._exempt, *(self._least.get(layer.name, 0) for layer, _ in family.members))

    def _kernels(self, family: Family) -> dict[str, Tensor]:
        return {layer.name: layer.kernel(self.scale) for layer, _ in family.members}

    def _step_size(self, layer: Layer) -> float:
        return self._pending[self._lr_group[layer.name]]

    # --- holding --------------------------------------------------------------------------------------------

    def _dead_at_hold(self, family: Family) -> Tensor:
        """The dead groups, and the weakest of those above the nearest multiple of the tile."""
        live = family.live()
        if not self._strengths.given(_names(family)):
            return torch.zeros_like(live)
        norms = torch.linalg.vector_norm(family.rows(self._kernels(family)), dim=1)
        kept = min(int(live.sum()), max(nearest_tile(int(live.sum()), self.tile), self._floor(family)))
        strongest = torch.argsort(torch.where(live, norms, -1.0), descending=True, stable=True)[: max(1, kept)]
        dead = torch.ones_like(live)
        dead[strongest] = False
        return dead

    # --- reports --------------------------------------------------------------------------------------------

    def _ease(self, kind: Kind, name: str, factor: float, why: str) -> None:
        eased = self._strengths.ease(kind, name, factor)
        self._report(name, f"its {why}; its {kind} strength is lowered to {eased:.2g} of what was given")

    def _report(self, layer: str | None, what: str) -> None:
        self.events.append(Event(step=self._steps, layer=layer, what=what))

    def _tell_new(self) -> None:
        for event in self.events[self._told :]:
            _tell(event.line())
        self._told = len(self.events)


def _tell(line: str) -> None:
    if processes.own() == 0:
        _log.warning("%s", line)


def _names(family: Family) -> list[str]:
    return [layer.name for layer, _ in family.members]


def _mean_live_norm(groups: Tensor) -> float:
    norms = torch.linalg.vector_norm(groups, dim=1)
    return float(norms.sum() / (norms > 0).sum().clamp_min(1))
