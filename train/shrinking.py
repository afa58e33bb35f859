"""One proximal step on the layers of a model, as `CompressionAware` asks for it: ranks first, then groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..export.tile import nearest_tile
from ..records import Event, Solver
from . import processes
from .exported import Exported
from .groups import Family
from .layers import Layer, matricize, parameter_groups, tensorize
from .proximal import (
    DivergedError,
    nuclear_norm,
    nuclear_norm_prox,
    singular_values,
    sparse_group_norm,
    sparse_group_prox,
    truncate_rank,
)
from .strength import Kind, Strengths

GENTLE = 0.1  # of its largest singular value, or strongest group: what a step takes of a layer that was about to vanish


@dataclass(frozen=True)
class Held:
    """What a layer keeps from the moment the strengths are released: a rank (None: any) and its filters."""

    rank: int | None
    dead: list[int]


@dataclass(frozen=True)
class Cut:
    """How the rank of a matrix falls: its singular values by `by` (or that share of σ₁), the `exempt` strongest by
    nothing; or, if there is one, to a `rank` that is held.
    """

    by: float
    exempt: int
    rank: int | None = None


@dataclass
class Shrinking:
    """The weights' side of `CompressionAware`, whose arguments `alpha`, `relative`, `guard` and `least` are.

    layers, families    by name; the groups of their filters
    strengths           τ and λ of each
    exported            what would be written of the layers: at which scale steps act, and to which ranks they may go
    exempt              singular values and groups of a layer that stay at least
    pending             the sum of the step sizes since the last proximal step, for each of the optimizer's groups
    held                what each layer keeps once the strengths are released
    events              where a step was taken gently
    """

    layers: Mapping[str, Layer]
    families: Sequence[Family]
    strengths: Strengths
    exported: Exported
    optimizer: torch.optim.Optimizer
    alpha: float
    relative: bool
    guard: bool
    exempt: int
    least: Mapping[str, int]
    steps: int = 0
    pending: list[float] = field(default_factory=list)
    held: dict[str, Held] | None = None
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lr_group = parameter_groups(self.optimizer, self.layers)
        self.rest()

    def count(self, start_at: int) -> None:
        """The optimizer took a step."""
        self.steps += 1
        if self.steps > start_at:
            for index, group in enumerate(self.optimizer.param_groups):
                self.pending[index] += float(group["lr"])

    def rest(self) -> None:
        """No step sizes are pending."""
        self.pending = [0.0] * len(self.optimizer.param_groups)

    def act(self, solver: Solver = "gram") -> None:
        """Take a proximal step, or if a structure is held project onto it."""
        if self.held is not None:
            for layer in self.layers.values():
                layer.kill(self.held[layer.name].dead)
        if self.exported.scale == "folded":
            variances = [layer.norm.running_var for layer in self.layers.values() if layer.norm is not None]
            processes.spread(variance for variance in variances if variance is not None)
        kernels = {name: self._kernel(layer) for name, layer in self.layers.items()}
        self._lower_ranks(kernels, solver)
        for name, layer in self.layers.items():
            layer.write(kernels[name], self.exported.scale)
        for family in self.families:
            if self.held is None:
                self._shrink_groups(family)
            family.kill(~family.live(), self.optimizer)
        self.rest()

    def hold(self) -> None:
        """Keep, from now on, the ranks and the live filters that there are."""
        for family in self.families:
            family.kill(self._dead_at_hold(family), self.optimizer)
        self.held = {}
        for name, layer in self.layers.items():
            rank = self.exported.layer(layer)[1]
            dead = (~layer.live()).nonzero().flatten().tolist() if layer.has_groups else []
            self.held[name] = Held(rank, dead)
        self.act()

    def penalty(self) -> float:
        """τ Σ‖Mₗ‖_* + λ Σ(sparse group norms), of the kernels that the steps act on."""
        total = 0.0
        for name, layer in self.layers.items():
            tau = self.strengths.tau[name]
            if tau and layer.form:
                total += tau * nuclear_norm(matricize(layer.form, self._kernel(layer)))
        for family in self.families:
            rows = family.rows(self._kernels(family))
            total += self.strengths.given(_names(family)) * sparse_group_norm(rows, self.alpha, rows.shape[1])
        return total

    def note(self, layer: str | None, what: str) -> None:
        """Something worth saying has happened."""
        self.events.append(Event(step=self.steps, layer=layer, what=what))

    # --- ranks ----------------------------------------------------------------------------------------------

    def _lower_ranks(self, kernels: dict[str, Tensor], solver: Solver) -> None:
        """Replace the kernels whose ranks fall."""
        cuts = {name: cut for name, layer in self.layers.items() if (cut := self._cut(layer)) is not None}
        matrices: dict[str, Tensor] = {}
        for name in cuts:
            form = self.layers[name].form
            assert form is not None, "a layer without a form is not decomposed"
            matrices[name] = matricize(form, kernels[name])
            if not kernels[name].isfinite().all():
                raise DivergedError(
                    f"layer '{name}', step {self.steps}: its weights hold NaN or infinity: training diverged; lower "
                    "the learning rate"
                )
        lowered = lower_ranks(matrices, cuts, relative=self.relative, solver=solver, guard=self.guard)
        for name, (matrix, factor) in lowered.items():
            form = self.layers[name].form
            assert form is not None
            kernels[name] = tensorize(form, matrix, kernels[name])
            if factor < 1:
                self._ease("low_rank", name, factor, "rank would fall to 0")

    def _cut(self, layer: Layer) -> Cut | None:
        """How the rank of a layer falls now; None: not at all."""
        name = layer.name
        if layer.form is None:
            return None
        if self.held is not None:
            rank = self.held[name].rank
            return None if rank is None else Cut(0.0, 0, rank)
        if not self.strengths.tau[name]:
            return None
        exempt = self.exported.useful.get(name, [self.exempt])[0]
        return Cut(self._step_size(layer) * self.strengths.low_rank(name, self.steps), exempt)

    # --- groups ---------------------------------------------------------------------------------------------

    def _shrink_groups(self, family: Family) -> None:
        strength = self.strengths.group(_names(family), self.steps) * self._step_size(family.members[0][0])
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
            layer.write(kernels[layer.name], self.exported.scale)

    def _dead_at_hold(self, family: Family) -> Tensor:
        """The dead groups, and the weakest of those above the nearest multiple of the tile."""
        live = family.live()
        if not self.strengths.given(_names(family)):
            return torch.zeros_like(live)
        norms = torch.linalg.vector_norm(family.rows(self._kernels(family)), dim=1)
        count = int(live.sum())
        kept = min(count, max(nearest_tile(count, self.exported.tile), self._floor(family)))
        strongest = torch.argsort(torch.where(live, norms, -1.0), descending=True, stable=True)[: max(1, kept)]
        dead = torch.ones_like(live)
        dead[strongest] = False
        return dead

    def _floor(self, family: Family) -> int:
        """Groups of the family that stay at least."""
        return max(self.exempt, *(self.least.get(layer.name, 0) for layer, _ in family.members))

    # --- both -----------------------------------------------------------------------------------------------

    def _kernel(self, layer: Layer) -> Tensor:
        return layer.kernel(self.exported.scale)

    def _kernels(self, family: Family) -> dict[str, Tensor]:
        return {layer.name: self._kernel(layer) for layer, _ in family.members}

    def _step_size(self, layer: Layer) -> float:
        return self.pending[self._lr_group[layer.name]]

    def _ease(self, kind: Kind, name: str, factor: float, why: str) -> None:
        eased = self.strengths.ease(kind, name, factor)
        self.note(name, f"its {why}; its {kind} strength is lowered to {eased:.2g} of what was given")


def lower_ranks(
    matrices: Mapping[str, Tensor], cuts: Mapping[str, Cut], *, relative: bool, solver: Solver, guard: bool
) -> dict[str, tuple[Tensor, float]]:
    """The matrices with the ranks they fall to, and by how much each cut had to be smaller for something to be left.

    Each process decomposes its share; matrices that one process alone would decompose together stay together, so the
    numbers are the same.
    """
    batches: dict[tuple[torch.Size, int, int | None], list[str]] = defaultdict(list)
    for name, matrix in matrices.items():
        batches[matrix.shape, cuts[name].exempt, cuts[name].rank].append(name)
    owners = processes.share_out({key: len(names) * key[0].numel() * min(key[0]) for key, names in batches.items()})
    found: dict[Any, tuple[Tensor, Tensor]] = {}
    for key, names in batches.items():
        alike = torch.stack([matrices[name] for name in names])
        eased = alike.new_ones(len(names), dtype=torch.float64)
        if owners[key] != processes.own():
            found[key] = torch.empty_like(alike), eased
        elif (rank := key[2]) is not None:
            found[key] = truncate_rank(alike, rank, solver=solver).contiguous(), eased
        else:
            cut = torch.tensor([cuts[name].by for name in names], dtype=torch.float64).to(alike.device)
            changed = nuclear_norm_prox(alike, cut, key[1], relative=relative, solver=solver).contiguous()
            gone = ~changed.flatten(1).any(dim=1) & alike.flatten(1).any(dim=1)
            if guard and gone.any():
                largest = 1.0 if relative else singular_values(alike[gone])[:, 0].to(cut)
                eased[gone] = GENTLE * largest / cut[gone]
                changed[gone] = nuclear_norm_prox(alike[gone], cut[gone] * eased[gone], relative=relative)
            found[key] = changed, eased
    lowered: dict[str, tuple[Tensor, float]] = {}
    for key, (changed, eased) in found.items():
        processes.spread((changed, eased), owners[key])
        lowered.update(zip(batches[key], zip(changed, eased.tolist(), strict=True), strict=True))
    return lowered


def _names(family: Family) -> list[str]:
    return [layer.name for layer, _ in family.members]


def _mean_live_norm(groups: Tensor) -> float:
    norms = torch.linalg.vector_norm(groups, dim=1)
    return float(norms.sum() / (norms > 0).sum().clamp_min(1))
