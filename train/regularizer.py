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

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..export.decompose import energy_of_ranks, numerical_rank, rank_of_share
from ..export.forms import FORMS, Form, KernelShape, kernel_shape
from ..export.grid import nearest_rank, strengths_by_time, useful_ranks
from ..export.tile import nearest_tile, up_to_tile
from ..records import FormName, LayerSummary, LayerTable, LayerTime, Solver
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
    hold_at    optimizer step from which the strengths are 0 and the structure reached is kept by projection:
               the rank that holds `energy` of Σσ, and the live filters, both rounded to the nearest multiple
               of `tile`. None: never.
    hold_macs  share of the dense MACs: hold as soon as the network, exported as it is, would have no more.
    tile       the device's channel multiple. Fewer channels or ranks than one tile are no faster, so with a tile
               above 1 the strongest `tile` singular values and filters of a layer are exempt from shrinkage.
    least      by layer name, filters that stay at least: the strongest so many are exempt from shrinkage.
    skip       names of layers to leave alone.
    table      what a latency table says of the model's layers on a device: rows, or a file of `rankfold latency-table
               show -o`. τ of a layer is then in proportion to the time it can save in its form (1 on average, 0 where
               no rank is faster than dense), and ranks are held at those that are faster, not at multiples of the tile.
    low_rank_factors, group_factors    by layer name, multiples of τ and λ; 1 where a layer is not named.

    Steps that a gradient scaler skips do not count. All state is in `state_dict()`.
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
        hold_at: int | None = None,
        hold_macs: float | None = None,
        tile: int = 1,
        energy: float = 1.0,
        least: Mapping[str, int] | None = None,
        skip: tuple[str, ...] = (),
        low_rank_factors: Mapping[str, float] | None = None,
        group_factors: Mapping[str, float] | None = None,
        table: Sequence[LayerTime] | Path | str | None = None,
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
        self.low_rank, self.group, self.alpha = low_rank, group, alpha
        self.every, self.form = every, form
        self.solver: Solver = solver
        self.scale: Scale = scale
        self.relative = relative
        self.start_at, self.hold_at, self.hold_macs = start_at, hold_at, hold_macs
        self.tile, self.energy = tile, energy
        self._model = model
        self.layers = layers_of(model, form, skip, needs_trace=group > 0 or scale == "folded")
        self._tau = strengths(self.layers, low_rank, low_rank_factors or {})
        self.table = LayerTable.read(table).rows if isinstance(table, Path | str) else table
        self._useful: dict[str, list[int]] = {}
        if self.table is not None and low_rank > 0:
            forms = {name: layer.form.name for name, layer in self.layers.items() if layer.form is not None}
            by_time = strengths_by_time(self.table, forms)
            self._tau = {name: tau * by_time.get(name, 0.0) for name, tau in self._tau.items()}
            self._useful = {name: useful_ranks(self.table, name, forms[name]) for name in forms if by_time[name]}
        grouped = {name: layer for name, layer in self.layers.items() if layer.has_groups}
        self._lambda = dict.fromkeys(self.layers, 0.0) | strengths(grouped, group, group_factors or {})
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
        self._exempt = tile if tile > 1 else 0
        self._least = dict(least or {})
        unknown = [name for name in self._least if name not in self.layers]
        if unknown:
            raise InputError(f"least names no layer '{unknown[0]}'; the layers are {', '.join(self.layers)}")
        self._held: dict[str, Held] | None = None
        self._pixels = record_pixels(self.layers)
        self._optimizer = optimizer
        optimizer.register_step_post_hook(self._count)

    # --- the three lines ------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self) -> bool:
        """Call after every `optimizer.step()`; takes a proximal step when one is due and says whether it did."""
        due = self._steps > self.start_at and self._steps % self.every == 0 and any(self._pending)
        if due:
            self._act(self.solver)
        if self._held is None and self._is_small_enough(due):
            self.hold()
        return due

    @torch.no_grad()
    def finish(self) -> None:
        """The last exact proximal step or projection: afterwards zeros are zeros and ranks are ranks."""
        self._act()

    @torch.no_grad()
    def hold(self) -> None:
        """Release the strengths and keep, from now on, the structure reached: ranks and live filters."""
        for family in self._families:
            family.kill(self._dead_at_hold(family), self._optimizer)
        self._held = {}
        for name, layer in self.layers.items():
            rank = self._exported(layer, layer.kernel(self.scale))[1]
            dead = (~layer.live()).nonzero().flatten().tolist() if layer.has_groups else []
            self._held[name] = Held(rank, dead)
        self._act()

    # --- what one sees --------------------------------------------------------------------------------------

    @torch.no_grad()
    def penalty(self) -> float:
        """τ Σ‖Mₗ‖_* + λ Σ(sparse group norms), of the kernels that the steps act on."""
        total = 0.0
        for layer in self.layers.values():
            kernel = layer.kernel(self.scale)
            if self._tau[layer.name] and (form := layer.form):
                total += self._tau[layer.name] * nuclear_norm(matricize(form, kernel))
        for family in self._families:
            rows = family.rows(self._kernels(family))
            total += self._strength(family) * sparse_group_norm(rows, self.alpha, rows.shape[1])
        return total

    @torch.no_grad()
    def macs(self) -> tuple[int, int]:
        """(multiply-accumulates if exported now, of the dense network) for one image, after a first forward."""
        now = dense = 0
        for layer in self.layers.values():
            pixels = self._pixels.get(layer.name, 0)
            kernel = layer.kernel(self.scale)
            shape, rank = self._exported(layer, kernel)
            form = layer.form
            weights = math.prod(shape) if rank is None or form is None else form.parameters(shape, rank)
            now += weights * pixels
            dense += kernel.numel() * pixels
        return now, dense

    @torch.no_grad()
    def summary(self) -> list[LayerSummary]:
        """Rank at export, live filters and energy of every layer."""
        return [self._summarize(layer) for layer in self.layers.values()]

    def compact(self, example_input: Tensor) -> nn.Module:
        """A small copy of the model: factors and narrower layers, BatchNorm kept; it does what `export` would write.

        `example_input` is a batch of its input. Raises InputError where the model's own code fixes a width.
        """
        from .compact import compact, exported  # late: training alone needs no onnx

        small, plan = exported(
            self._model, example_input, form=self.form, energy=self.energy, tile=self.tile, table=self.table
        )
        return compact(self._model, small, plan, example_input)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        held = self._held and {name: [h.rank, h.dead] for name, h in self._held.items()}
        table = self.table and [row.model_dump(mode="json") for row in self.table]
        return {"steps": self._steps, "pending": list(self._pending), "held": held, "table": table}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict()` was made. Raises InputError where that was by another latency table."""
        if state.get("table") != self.state_dict()["table"]:
            raise InputError("the latency table is not the one that this training began with; put that back")
        self._steps, self._pending = state["steps"], list(state["pending"])
        held = state["held"]
        self._held = None if held is None else {name: Held(rank, dead) for name, (rank, dead) in held.items()}

    # --- one proximal step ----------------------------------------------------------------------------------

    def _count(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._steps += 1
        if self._steps > self.start_at:
            for index, group in enumerate(optimizer.param_groups):
                self._pending[index] += float(group["lr"])

    def _is_small_enough(self, acted: bool) -> bool:
        if self.hold_at is not None and self._steps >= self.hold_at:
            return True
        if self.hold_macs is None or not acted:
            return False
        now, dense = self.macs()
        return now <= self.hold_macs * dense

    def _act(self, solver: Solver = "gram") -> None:
        if self._held is not None:
            for layer in self.layers.values():
                layer.kill(self._held[layer.name].dead)
        kernels = {layer.name: layer.kernel(self.scale) for layer in self.layers.values()}
        for (_, exempt, rank), alike in self._alike(kernels).items():
            names, matrices = list(alike), torch.stack(list(alike.values()))
            try:
                if rank is not None:
                    changed = truncate_rank(matrices, rank, solver=solver)
                else:
                    cut = torch.tensor([self._cut(name) for name in names], dtype=torch.float64)
                    changed = nuclear_norm_prox(
                        matrices, cut.to(matrices.device), exempt, relative=self.relative, solver=solver
                    )
            except DivergedError as error:
                ill = next(name for name in names if not torch.isfinite(kernels[name]).all())
                raise DivergedError(f"layer '{ill}', step {self._steps}: {error}") from error
            for name, matrix in zip(names, changed, strict=True):
                kernels[name] = tensorize(self._form(name), matrix, kernels[name])
        for layer in self.layers.values():
            layer.write(kernels[layer.name], self.scale)
        for family in self._families:
            if self._held is None:
                self._shrink_groups(family)
            family.kill(~family.live(), self._optimizer)
        self._pending = [0.0] * len(self._pending)

    def _alike(self, kernels: Mapping[str, Tensor]) -> dict[tuple[torch.Size, int, int | None], dict[str, Tensor]]:
        """The matrices of the layers whose ranks fall now, those that are decomposed together under one key: their
        shape, the singular values exempt from shrinkage, and the rank where it is held.
        """
        found: dict[tuple[torch.Size, int, int | None], dict[str, Tensor]] = defaultdict(dict)
        for name, layer in self.layers.items():
            rank = self._held[name].rank if self._held is not None else None
            if layer.form is None or (rank is None and (self._held is not None or not self._tau[name])):
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
        return self._step_size(self.layers[name]) * self._tau[name]

    def _shrink_groups(self, family: Family) -> None:
        strength = self._strength(family) * self._step_size(family.members[0][0])
        if not strength:
            return
        kernels = self._kernels(family)
        rows = family.rows(kernels)
        if self.relative:
            shrunk = sparse_group_prox(rows, strength * _mean_live_norm(rows), self.alpha, 1, self._floor(family))
        else:
            shrunk = sparse_group_prox(rows, strength, self.alpha, rows.shape[1], self._floor(family))
        family.write(shrunk, kernels)
        for layer, _ in family.members:
            layer.write(kernels[layer.name], self.scale)

    def _floor(self, family: Family) -> int:
        """Groups of the family that stay at least."""
        return max(self._exempt, *(self._least.get(layer.name, 0) for layer, _ in family.members))

    def _kernels(self, family: Family) -> dict[str, Tensor]:
        return {layer.name: layer.kernel(self.scale) for layer, _ in family.members}

    def _strength(self, family: Family) -> float:
        """λ of the family: the mean of its layers'."""
        return fmean(self._lambda[layer.name] for layer, _ in family.members)

    def _step_size(self, layer: Layer) -> float:
        return self._pending[self._lr_group[layer.name]]

    # --- holding --------------------------------------------------------------------------------------------

    def _dead_at_hold(self, family: Family) -> Tensor:
        """The dead groups, and the weakest of those above the nearest multiple of the tile."""
        live = family.live()
        if not self._strength(family):
            return torch.zeros_like(live)
        norms = torch.linalg.vector_norm(family.rows(self._kernels(family)), dim=1)
        kept = min(int(live.sum()), max(nearest_tile(int(live.sum()), self.tile), self._floor(family)))
        strongest = torch.argsort(torch.where(live, norms, -1.0), descending=True, stable=True)[: max(1, kept)]
        dead = torch.ones_like(live)
        dead[strongest] = False
        return dead

    def _exported(self, layer: Layer, kernel: Tensor) -> tuple[KernelShape, int | None]:
        """The layer's shape without its dead channels, up to the tile, and the rank that holds `energy`, to the
        nearest multiple of the tile, or to the nearest that is faster than dense; None where factors do not pay.
        """
        outputs, inputs, height, width = kernel_shape(kernel.shape)
        outputs = min(outputs, up_to_tile(int(layer.live().sum()), self.tile))
        inputs = min(inputs, up_to_tile(_live_inputs(kernel), self.tile))
        shape = (outputs, inputs, height, width)
        form = layer.form
        if not self._tau[layer.name] or form is None:
            return shape, None
        wanted, full, _ = self._rank(matricize(form, kernel))
        useful = self._useful.get(layer.name)
        rank = nearest_tile(wanted, self.tile) if useful is None else nearest_rank(useful, wanted, full)
        return shape, rank if rank is not None and form.parameters(shape, rank) < math.prod(shape) else None

    def _rank(self, matrix: Tensor) -> tuple[int, int, float]:
        """(rank kept at `energy`, full rank, share of Σσ kept)."""
        values = singular_values(matrix).cpu().numpy()
        rank, shares = max(1, numerical_rank(values, matrix.shape)), energy_of_ranks(values)
        if self.energy < 1:
            rank = min(rank, rank_of_share(shares, self.energy))
        return rank, len(values), float(shares[rank - 1])

    def _summarize(self, layer: Layer) -> LayerSummary:
        form = layer.form or FORMS["channel"]  # a grouped layer is summarised, never factored
        kernel = layer.kernel("folded")
        rank, full, energy = self._rank(matricize(form, kernel))
        live = layer.live()
        return LayerSummary(
            name=layer.name,
            form=cast(FormName, form.name),
            rank=rank,
            full_rank=full,
            live_groups=int(live.sum()) if layer.has_groups else None,
            groups=len(live) if layer.has_groups else None,
            energy=energy,
        )


def _mean_live_norm(groups: Tensor) -> float:
    norms = torch.linalg.vector_norm(groups, dim=1)
    return float(norms.sum() / (norms > 0).sum().clamp_min(1))


def _live_inputs(kernel: Tensor) -> int:
    return max(1, int((kernel.transpose(0, 1).flatten(1).abs().amax(dim=1) > 0).sum()))
