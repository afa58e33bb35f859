"""Choose a rank for every layer: by energy, rounded up to the tile, and only where it saves MACs.

One equal energy for all layers is the baseline. A parameter budget picks that energy: the post-hoc SVD of a dense
network at the size of another one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..errors import CheckFailed, InputError
from ..records import GroupDecision, LayerDecision, LayerTime, Plan
from .decompose import energy_of_ranks, numerical_rank, rank_of_share, singular_values
from .forms import FORMS, Form, resolve
from .graphs import array
from .grid import next_rank, useful_ranks
from .layers import Layer, layers_of, require_known
from .tile import up_to_tile

_LEAST_ENERGY = 1e-9  # no more than rank 1 anywhere


@dataclass(frozen=True)
class _Spectrum:
    """A layer that may be factorised: its form, and the energy of each rank (share of Σσ, ascending).

    `grid` are the ranks that a latency table calls faster than dense, None without a table.
    """

    layer: Layer
    form: Form
    energies: NDArray[np.floating]
    useful: int
    grid: Sequence[int] | None

    @property
    def full(self) -> int:
        return len(self.energies)


def plan_by_energy(
    model: ir.Model,
    *,
    form: str,
    energy: float,
    tile: int = 1,
    parameters: int | None = None,
    keep: Collection[str] = (),
    groups: Mapping[str, GroupDecision] | None = None,
    dense_macs: Mapping[str, int | None] | None = None,
    table: Sequence[LayerTime] | None = None,
) -> Plan:
    """A decision and a reason for every layer of a canonical model whose BatchNorm is folded.

    `energy` is the share of Σσ to keep (Alvarez & Salzmann 2017); `parameters` overrides it by the largest equal
    energy whose network has at most that many. `keep` names layers that stay dense. `dense_macs` are the layers'
    MACs before channels were folded. With a latency `table` ranks are rounded up to one measured faster than dense
    instead of the tile, and a layer without such a one stays dense. Raises InputError for an unknown form or layer,
    an energy outside (0, 1] or a tile below 1, CheckFailed when the budget is infeasible.
    """
    _check_options(form, energy, tile)
    layers = layers_of(model)
    require_known(keep, [layer.name for layer in layers])
    spectra = {one.name: _spectrum(one, form, table) for one in layers if not one.obstacle and one.name not in keep}
    if parameters is not None:
        energy = _energy_for(parameters, _total_parameters(model), list(spectra.values()), tile)
    before = dense_macs or {}
    decisions = {
        layer.name: _decide(layer, spectra.get(layer.name), energy, tile, before.get(layer.name, layer.macs))
        for layer in layers
    }
    return Plan(tile=tile, groups=dict(groups or {}), layers=decisions)


def _check_options(form: str, energy: float, tile: int) -> None:
    if form not in FORMS:
        raise InputError(f"unknown form '{form}'; choose one of {', '.join(FORMS)}")
    if not 0 < energy <= 1:
        raise InputError(f"expected an energy in (0, 1], found {energy}")
    if tile < 1:
        raise InputError(f"expected a tile of at least 1, found {tile}")


def _spectrum(layer: Layer, form_name: str, table: Sequence[LayerTime] | None) -> _Spectrum:
    form = resolve(form_name, layer.shape)
    values = singular_values(layer.kernel, form)
    matrix = form.matricize(layer.kernel)
    grid = None if table is None else useful_ranks(table, layer.name, form.name)
    return _Spectrum(layer, form, energy_of_ranks(values), max(numerical_rank(values, matrix.shape), 1), grid)


def _rank(spectrum: _Spectrum, energy: float, tile: int) -> int:
    """By energy, never above the numerical rank, rounded up to the tile or grid but not above the full rank."""
    exact = min(rank_of_share(spectrum.energies, energy), spectrum.useful)
    rounded = up_to_tile(exact, tile) if spectrum.grid is None else next_rank(spectrum.grid, exact)
    return min(rounded or spectrum.full, spectrum.full)


def _saves(spectrum: _Spectrum, rank: int) -> bool:
    pixels = spectrum.layer.pixels
    if spectrum.grid is not None and rank not in spectrum.grid:
        return False
    return pixels is not None and rank <= spectrum.form.break_even(spectrum.layer.shape, pixels)


def _decide(layer: Layer, spectrum: _Spectrum | None, energy: float, tile: int, before: int | None) -> LayerDecision:
    if spectrum is None or layer.pixels is None:
        reason = layer.closed or "kept by name"
        return LayerDecision(form="dense", reason=reason, macs_dense=before, macs=layer.macs)
    rank, form = _rank(spectrum, energy, tile), spectrum.form
    even = form.break_even(layer.shape, layer.pixels)
    rounding = f"tile {tile}" if spectrum.grid is None else "by the latency table"
    share = f"rank {rank} of {spectrum.full} for {energy:.4g} of the energy, {rounding}"
    if not _saves(spectrum, rank):
        return LayerDecision(
            form="dense",
            full_rank=spectrum.full,
            reason=f"{share}: {_why_dense(spectrum, rank, even)}",
            macs_dense=before,
            macs=layer.macs,
        )
    return LayerDecision.model_validate(
        {
            "form": form.name,
            "ranks": [rank],
            "full_rank": spectrum.full,
            "energy": float(min(spectrum.energies[rank - 1], 1.0)),
            "reason": f"{share}: fewer MACs, up to rank {even}",
            "macs_dense": before,
            "macs": form.macs(layer.shape, rank, layer.pixels),
        }
    )


def _why_dense(spectrum: _Spectrum, rank: int, even: int) -> str:
    name = spectrum.form.name
    if spectrum.grid is not None and rank not in spectrum.grid:
        return f"in the {name} form no rank from the one it needs on is faster than dense"
    return f"no fewer MACs in the {name} form, which gains up to rank {even}"


def _total_parameters(model: ir.Model) -> int:
    arrays = [array(value) for value in model.graph.initializers.values()]
    return sum(numbers.size for numbers in arrays if numbers is not None and numbers.dtype.kind == "f")


def _energy_for(budget: int, total: int, spectra: list[_Spectrum], tile: int) -> float:
    """The largest equal energy whose network has at most `budget` parameters.

    Networks change only where a layer's rank does, so those energies are all there is to search.
    """

    def parameters_at(energy: float) -> int:
        return total - sum(_saved(spectrum, _rank(spectrum, energy, tile)) for spectrum in spectra)

    steps = np.unique(np.concatenate([[_LEAST_ENERGY], *(np.minimum(one.energies, 1.0) for one in spectra)]))
    candidates = [float(step) for step in steps]
    fitting = bisect_right(candidates, budget, key=parameters_at)
    while fitting and parameters_at(candidates[fitting - 1]) > budget:
        fitting -= 1  # a layer that turns dense again may have fewer parameters: not quite monotone
    if not fitting:
        least = parameters_at(candidates[0])
        raise CheckFailed(
            f"expected at most {budget} parameters, found {least} at the smallest ranks; allow {least} or more"
        )
    return candidates[fitting - 1]


def _saved(spectrum: _Spectrum, rank: int) -> int:
    if not _saves(spectrum, rank):
        return 0
    return spectrum.layer.kernel.size - spectrum.form.parameters(spectrum.layer.shape, rank)
