"""What may keep a network from being as fast as its MACs promise, each cause with the file in which only it is gone.

Two uses. The ledger takes causes away one after the other; there a file need not compute what it did, only run as it
would. A change that a user may want is made to the file as it is, and says what it does to the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime import costs
from ..chains import Chain, chains, cut, kernel_of, undo
from ..damage import distinct
from ..decompose import truncated_svd
from ..forms import FORMS, Form
from ..graphs import drop_unused_initializers, refresh_shapes, serialize
from ..layers import Layer, layers_of
from ..passes.bypass import bypass, detours
from ..passes.factorize import replace
from ..passes.flush_denormals import flush_denormals
from ..passes.pad_channels import OffTile, off_tile, pad_channels
from ..passes.rewrites import REWRITES
from ..tile import up_to_tile
from .ledger import Step

_EXACT = 1e-6  # of a kernel's norm: a chain that has lost no more is taken for exact


@dataclass(frozen=True)
class Change:
    """One that may be made to the second file. `apply` makes it and returns the largest relative change of a kernel,
    None where the file computes what it did; of the changes at one `place` only one can be made.
    """

    name: str
    about: str
    place: str
    apply: Callable[[ir.Model], float | None]


# --- the ledger ---------------------------------------------------------------------------------------------


def steps(raw: ir.Model, tidied: ir.Model, first: ir.Model, tile: int) -> list[Step]:
    """The file as it is, then with one more cause taken away at each step, where there was any that the first file has
    not as well: that is in its time already.

    `raw` is the file as it was read, `tidied` the same after hygiene, as `first` is. None of them is changed.
    """
    found = [_step(raw, "", "the file as it is", [], "")]
    flushed = _copy(raw)
    count = flush_denormals(flushed)
    if count:
        found.append(_step(flushed, "denormals", f"{count} weights are denormal", [], "set to zero"))
    model = _copy(tidied)
    flush_denormals(model)
    found.append(_step(model, "hygiene", "constants and BatchNormalization are not folded", [], "folded"))
    found += filter(None, (take_away(model, first, tile) for take_away in (_detours, _ranks, _widths, _factors)))
    return [step for number, step in enumerate(found) if not number or step.content != found[number - 1].content]


def _detours(model: ir.Model, first: ir.Model, tile: int) -> Step | None:
    places = [name for name, rewrite in REWRITES.items() if not rewrite(_copy(first)) and rewrite(model)]
    own = {detour.nodes for detour in detours(first)}
    found = [detour for detour in detours(model) if detour.nodes not in own]
    for detour in found:
        bypass(model, detour)
    places += [" → ".join(detour.nodes) for detour in found]
    about = "numbers are moved there and back, or in a way that forces the layout back and forth"
    return _step(model, "data movement", about, places, "taken out, or rewritten") if places else None


def _ranks(model: ir.Model, first: ir.Model, tile: int) -> Step | None:
    return _padded(model, tile, [group for group in off_tile(model, tile) if group.is_rank], "ranks off the tile")


def _widths(model: ir.Model, first: ir.Model, tile: int) -> Step | None:
    own = {(group.name, group.channels) for group in off_tile(first, tile)}
    groups = [group for group in off_tile(model, tile) if not group.is_rank]
    return _padded(model, tile, [g for g in groups if (g.name, g.channels) not in own], "widths off the tile")


def _padded(model: ir.Model, tile: int, groups: Sequence[OffTile], cause: str) -> Step | None:
    if not groups:
        return None
    places = [f"{_home(model, group)}: {group.channels} run as {group.padded}" for group in groups]
    pad_channels(model, tile, [group.name for group in groups])
    return _step(model, cause, f"the device computes channels in steps of {tile}", places, "padded with zeros")


def _factors(model: ir.Model, first: ir.Model, tile: int) -> Step | None:
    own = {(chain.name, chain.ranks) for chain in chains(first)}
    found = [chain for chain in chains(model) if (chain.name, chain.ranks) not in own]
    if not found:
        return None
    for chain in found:
        undo(model, chain)
    places = [f"{chain.name}: {'/'.join(map(str, chain.ranks))}" for chain in found]
    about = "several thin layers for one: more nodes, more numbers written, less work for each that is read"
    return _step(model, "factors", about, places, "multiplied to the one layer they stand for")


def _step(model: ir.Model, cause: str, about: str, places: list[str], changed: str) -> Step:
    """Raises ValueError where the MACs are not known."""
    content = serialize(model)
    macs = costs.count(ir.to_proto(model)).macs
    if not macs:
        raise ValueError("its MACs cannot be counted")
    return Step(cause, about, places, changed, content, macs)


def _copy(model: ir.Model) -> ir.Model:
    return ir.from_proto(ir.to_proto(model))


# --- changes that a user may make ---------------------------------------------------------------------------


def changes(model: ir.Model, first: ir.Model, tile: int) -> list[Change]:
    """Of the second file after hygiene; `first` says how much its factors have lost already."""
    return [*_exact(model, tile), *_per_chain(model, first, tile)]


def _exact(model: ir.Model, tile: int) -> Iterator[Change]:
    for name, rewrite in REWRITES.items():
        if rewrite(_copy(model)):
            yield Change(name, "an exact rewrite", name, partial(_exactly, rewrite))
    for detour in detours(model):
        if detour.exact:
            name, taken_out = f"without {' → '.join(detour.nodes)}", partial(bypass, detour=detour)
            yield Change(name, "they move numbers there and back", name, partial(_exactly, taken_out))
    for group in off_tile(model, tile):
        place = _home(model, group)
        yield Change(
            f"{place} {group.channels} → {group.padded}",
            f"{'ranks' if group.is_rank else 'channels'} padded to the tile of {tile} with zeros",
            place,
            partial(_exactly, partial(pad_channels, tile=tile, names=[group.name])),
        )


def _home(model: ir.Model, group: OffTile) -> str:
    """The layer whose factors the channels are between, or the first that puts them out."""
    if not group.is_rank:
        return group.name
    return next((chain.name for chain in chains(model) if group.name in chain.layers), group.name)


def _exactly(change: Callable[[ir.Model], object], model: ir.Model) -> None:
    change(model)


def _per_chain(model: ir.Model, first: ir.Model, tile: int) -> Iterator[Change]:
    original = {layer.name: layer for layer in layers_of(first)}
    for chain in chains(model):
        yield Change(f"{chain.name} in one layer", "factors multiplied", chain.name, partial(_undone, name=chain.name))
        fewer = tuple(rank if rank <= tile else rank // tile * tile for rank in chain.ranks)
        if fewer != tuple(chain.ranks):
            yield Change(
                f"{chain.name} {_told(chain.ranks)} → {_told(fewer)}",
                f"ranks cut to the tile of {tile}",
                chain.name,
                partial(_cut, name=chain.name, ranks=fewer),
            )
        kernel, layer = kernel_of(model, chain), original.get(chain.name)
        if layer is not None and layer.kernel.shape == kernel.shape:
            yield from _other_forms(chain, kernel, layer, tile)


def _other_forms(chain: Chain, kernel: NDArray, layer: Layer, tile: int) -> Iterator[Change]:
    """The least rank on the tile in each form that loses no more of the first file's kernel than the chain does."""
    lost = float(np.linalg.norm(kernel - layer.kernel) / np.linalg.norm(layer.kernel))
    for form in distinct(list(FORMS), layer):
        if not isinstance(form, Form) or form.full_rank(kernel.shape) < tile:
            continue
        values = np.linalg.svd(form.matricize(layer.kernel), compute_uv=False)
        left = np.sqrt(np.append(np.cumsum(values[::-1] ** 2)[::-1], 0.0)) / np.linalg.norm(values)
        rank = up_to_tile(int(np.argmax(left <= max(lost, _EXACT))), tile)
        if rank > form.full_rank(kernel.shape) or layer.pixels is None:
            continue
        if form.macs(kernel.shape, rank, layer.pixels) < (chain.macs or 0):
            yield Change(
                f"{chain.name} {form.name} {rank}",
                f"another form of the first file's layer, no further from it than now, {lost:.1%}",
                chain.name,
                partial(_reformed, name=chain.name, kernel=layer.kernel, form=form, rank=rank),
            )


def _undone(model: ir.Model, name: str) -> None:
    undo(model, _chain(model, name))


def _cut(model: ir.Model, name: str, ranks: Sequence[int]) -> float:
    return cut(model, _chain(model, name), ranks)


def _reformed(model: ir.Model, name: str, kernel: NDArray[np.float64], form: Form, rank: int) -> float:
    dense = undo(model, _chain(model, name))
    layer = next(layer for layer in layers_of(model) if layer.name == dense)
    factors = truncated_svd(kernel, form, rank)
    error = np.linalg.norm(factors.to_dense() - layer.kernel) / np.linalg.norm(layer.kernel)
    replace(layer, form, factors)
    drop_unused_initializers(model.graph)
    refresh_shapes(model)
    return float(error)


def _chain(model: ir.Model, name: str) -> Chain:
    return next(chain for chain in chains(model) if chain.name == name)


def _told(ranks: Sequence[int]) -> str:
    return "/".join(map(str, ranks))
