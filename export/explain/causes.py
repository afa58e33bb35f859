"""What may keep a network from being as fast as its MACs promise, each cause with the file in which only it is gone.

Two uses. The ledger takes causes away one after the other; there a file need not compute what it did, only run as it
would. A change that a user may want is made to the folded file, and says what it does to the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import InputError
from ...runtime import costs
from ..chains import Chain, chains, cut, kernel_of, undo
from ..damage import distinct
from ..decompose import truncated_svd
from ..forms import FORMS, Form
from ..graphs import copied, drop_unused_initializers, refresh_shapes, serialize
from ..layers import layers_of
from ..passes.bypass import bypass, detours
from ..passes.factorize import replace
from ..passes.flush_denormals import count_denormals, flush_denormals
from ..passes.pad_channels import OffTile, off_tile, pad_channels
from ..passes.rewrites import REWRITES
from ..tile import up_to_tile
from .ledger import Step

_EXACT = 1e-6  # of a kernel's norm: a chain that has lost no more is taken for exact
_MOST_CHAINS = 12  # whose changes are tried, those with the most MACs


@dataclass(frozen=True)
class Change:
    """One that may be made to the second file. `apply` makes it and returns the largest relative change of a kernel,
    None where the file computes what it did; of the changes at one `place` only one can be made. `macs` are at stake.
    """

    name: str
    about: str
    place: str
    apply: Callable[[ir.Model], float | None]
    macs: int = 0


def folded(tidied: ir.Model) -> ir.Model:
    """A copy as `rankfold fold` leaves it: denormals are zero."""
    model = copied(tidied)
    flush_denormals(model)
    return model


# --- the ledger ---------------------------------------------------------------------------------------------


def steps(raw: ir.Model, tidied: ir.Model, first: ir.Model, tile: int) -> list[Step]:
    """The file as it is, then with one more cause taken away at each step, where there was any that the first file has
    not as well: that is in its time already.

    `raw` is the file as it was read, `tidied` the same after hygiene, as `first` is. None of them is changed.
    """
    found = [
        _step(raw, "", "the file as it is", [], ""),
        _step(tidied, "hygiene", "constants and BatchNormalization are not folded", [], "folded"),
    ]
    model = folded(tidied)
    count = _denormals(tidied)
    if count and not _denormals(first):
        found.append(_step(model, "denormals", f"{count} weights are denormal", [], "set to zero"))
    factored = _others(chains(model), chains(first))
    found += filter(None, (_detours(model, first), _ranks(model, first, tile), _widths(model, first, tile)))
    if factored:
        found.append(_factors(model, factored))
    return [step for number, step in enumerate(found) if not number or step.content != found[number - 1].content]


def _denormals(model: ir.Model) -> int:
    return sum(map(count_denormals, model.graph.initializers.values()))


def _others(found: Sequence[Chain], own: Sequence[Chain]) -> list[Chain]:
    names = {chain.name for chain in own}
    return [chain for chain in found if chain.name not in names]


def _detours(model: ir.Model, first: ir.Model) -> Step | None:
    places = [name for name, rewrite in REWRITES.items() if not rewrite(copied(first)) and rewrite(model)]
    own = {detour.nodes for detour in detours(first)}
    found = [detour for detour in detours(model) if detour.nodes not in own]
    for detour in found:
        bypass(model, detour)
    places += [" → ".join(detour.nodes) for detour in found]
    about = "numbers are moved there and back, or in a way that forces the layout back and forth"
    return _step(model, "data movement", about, places, "taken out, or rewritten") if places else None


def _ranks(model: ir.Model, first: ir.Model, tile: int) -> Step | None:
    return _padded(model, first, tile, "ranks off the tile", is_rank=True)


def _widths(model: ir.Model, first: ir.Model, tile: int) -> Step | None:
    return _padded(model, first, tile, "widths off the tile", is_rank=False)


def _padded(model: ir.Model, first: ir.Model, tile: int, cause: str, *, is_rank: bool) -> Step | None:
    own = {(group.name, group.channels) for group in off_tile(first, tile)}
    found = [group for group in off_tile(model, tile) if group.is_rank == is_rank]
    groups = [group for group in found if (group.name, group.channels) not in own]
    if not groups:
        return None
    home = _homes(model)
    places = [f"{home.get(group.name, group.name)}: {group.channels}, not {group.padded}" for group in groups]
    pad_channels(model, tile, [group.name for group in groups])
    return _step(model, cause, f"the device computes channels in steps of {tile}", places, "padded with zeros")


def _factors(model: ir.Model, found: Sequence[Chain]) -> Step:
    for chain in found:
        undo(model, chain)
    places = [f"{chain.name}: {_told(chain.ranks)}" for chain in found]
    about = "several thin layers for one: more nodes, more numbers written, less work for each that is read"
    return _step(model, "factors", about, places, "multiplied to the one layer they stand for")


def _step(model: ir.Model, cause: str, about: str, places: list[str], changed: str) -> Step:
    macs = costs.count(ir.to_proto(model)).macs
    if macs is None:
        raise InputError(f"the MACs without its {cause} cannot be counted; report the file")
    return Step(cause, about, places, changed, serialize(model), macs)


def _homes(model: ir.Model) -> dict[str, str]:
    """The layer that each factor belongs to."""
    return {layer: chain.name for chain in chains(model) for layer in chain.layers}


def _told(ranks: Sequence[int]) -> str:
    return "/".join(map(str, ranks))


# --- changes that a user may make ---------------------------------------------------------------------------


@dataclass
class Original:
    """The first file's layers, by name: how much the second's factors have lost already. Nothing is computed twice."""

    model: ir.Model

    def __post_init__(self) -> None:
        self.layers = {layer.name: layer for layer in layers_of(self.model)}
        self._left: dict[tuple[str, str], NDArray] = {}

    def left(self, name: str, form: Form) -> NDArray:
        """What of a kernel's norm is beyond rank 0, 1, 2 … in a form."""
        if (name, form.name) not in self._left:
            values = np.linalg.svd(form.matricize(self.layers[name].kernel), compute_uv=False)
            beyond = np.sqrt(np.append(np.cumsum(values[::-1] ** 2)[::-1], 0.0))
            self._left[name, form.name] = beyond / np.linalg.norm(values)
        return self._left[name, form.name]


def changes(model: ir.Model, original: Original, tile: int) -> dict[str, Change]:
    """Of the second file, folded, as it is now, by name, most MACs first.

    One that has been made changes what others there are: look again before the next.
    """
    factored, groups = chains(model), off_tile(model, tile)
    found = [*_moves(model), *_paddings(model, groups, tile)]
    largest = sorted(factored, key=lambda chain: -(chain.macs or 0))[:_MOST_CHAINS]
    for chain in largest:
        found += _of_chain(model, chain, original, tile)
    cuts = {chain.name: fewer for chain in factored if (fewer := _on_tile(chain, tile)) != chain.ranks}
    if len(cuts) > 1:
        macs = sum(chain.macs or 0 for chain in factored)
        found.append(
            Change("all ranks cut", f"to the tile of {tile}", "all ranks", partial(_all_cut, ranks=cuts), macs)
        )
    return {change.name: change for change in sorted(found, key=lambda change: -change.macs)}


def in_turn(model: ir.Model, names: Sequence[str], original: Original, tile: int, most: int) -> dict[str, float | None]:
    """Make up to `most` changes one after the other, in place: the error of each, by name.

    Those that there are not any more are left out, and those of a place where one was made.
    """
    errors, places = dict[str, float | None](), set[str]()
    known: dict[str, Change] | None = None
    for name in names:
        if len(errors) == most:
            break
        known = changes(model, original, tile) if known is None else known
        change = known.get(name)
        if change is not None and change.place not in places:
            errors[name] = change.apply(model)
            places.add(change.place)
            known = None  # another graph now
    return errors


def _moves(model: ir.Model) -> Iterator[Change]:
    whole = costs.count(ir.to_proto(model)).macs or 0
    for name, rewrite in REWRITES.items():
        if rewrite(copied(model)):
            yield Change(name, "an exact rewrite", name, partial(_exactly, rewrite), whole)
    for detour in detours(model):
        if detour.exact:
            name, taken_out = f"without {' → '.join(detour.nodes)}", partial(bypass, detour=detour)
            yield Change(name, "they move numbers there and back", name, partial(_exactly, taken_out), whole)


def _paddings(model: ir.Model, groups: Sequence[OffTile], tile: int) -> Iterator[Change]:
    counted, home = costs.count(ir.to_proto(model)).layers, _homes(model)
    by_place: dict[str, list[OffTile]] = {}
    for group in groups:
        by_place.setdefault(home.get(group.name, group.name) if group.is_rank else group.name, []).append(group)
    for place, mine in by_place.items():
        before, after = (_told([getattr(group, what) for group in mine]) for what in ("channels", "padded"))
        about = f"{'ranks' if mine[0].is_rank else 'channels'} padded to the tile of {tile} with zeros"
        names = [group.name for group in mine]
        touched = {layer for group in mine for layer in (*group.producers, *group.readers)}
        macs = sum(counted[layer].macs or 0 for layer in touched if layer in counted)
        padded = partial(pad_channels, tile=tile, names=names)
        yield Change(f"{place} {before} → {after}", about, place, partial(_exactly, padded), macs)
    for is_rank, what in ((True, "all ranks"), (False, "all widths")):
        names = [group.name for group in groups if group.is_rank == is_rank]
        if len(names) > 1:
            padded = partial(pad_channels, tile=tile, names=names)
            macs = sum(cost.macs or 0 for cost in counted.values())
            yield Change(f"{what} padded", f"to the tile of {tile}, with zeros", what, partial(_exactly, padded), macs)


def _of_chain(model: ir.Model, chain: Chain, original: Original, tile: int) -> Iterator[Change]:
    macs = chain.macs or 0
    yield Change(f"{chain.name} in one layer", "factors multiplied", chain.name, partial(_undone, chain=chain), macs)
    fewer = _on_tile(chain, tile)
    if fewer != chain.ranks:
        name, about = f"{chain.name} {_told(chain.ranks)} → {_told(fewer)}", f"ranks cut to the tile of {tile}"
        yield Change(name, about, chain.name, partial(cut, chain=chain, ranks=fewer), macs)
    yield from _other_forms(chain, kernel_of(model, chain), original, tile)


def _on_tile(chain: Chain, tile: int) -> tuple[int, ...]:
    return tuple(rank if rank <= tile else rank // tile * tile for rank in chain.ranks)


def _other_forms(chain: Chain, kernel: NDArray, original: Original, tile: int) -> Iterator[Change]:
    """The least rank on the tile in each form that loses no more of the first file's kernel than the chain does."""
    layer = original.layers.get(chain.name)
    if layer is None or layer.kernel.shape != kernel.shape:
        return
    lost = float(np.linalg.norm(kernel - layer.kernel) / (np.linalg.norm(layer.kernel) or 1.0))
    if not lost < 1 or layer.pixels is None:
        return  # trained from scratch: the first file's kernel says nothing of it
    for form in distinct(list(FORMS), layer):
        if not isinstance(form, Form) or form.full_rank(kernel.shape) < tile:
            continue
        enough = original.left(chain.name, form) <= max(lost, _EXACT)
        rank = up_to_tile(max(int(np.argmax(enough)), 1), tile)
        if rank <= form.full_rank(kernel.shape) and form.macs(kernel.shape, rank, layer.pixels) < (chain.macs or 0):
            yield Change(
                f"{chain.name} {form.name} {rank}",
                f"made anew from the first file's layer, no further from it than now ({lost:.1%}); to be fine-tuned",
                chain.name,
                partial(_reformed, chain=chain, kernel=layer.kernel, form=form, rank=rank),
                chain.macs or 0,
            )


def _exactly(change: Callable[[ir.Model], object], model: ir.Model) -> None:
    change(model)


def _undone(model: ir.Model, chain: Chain) -> None:
    undo(model, chain)


def _all_cut(model: ir.Model, ranks: dict[str, tuple[int, ...]]) -> float:
    return max(cut(model, chain, ranks[chain.name]) for chain in chains(model) if chain.name in ranks)


def _reformed(model: ir.Model, chain: Chain, kernel: NDArray[np.float64], form: Form, rank: int) -> float:
    dense = undo(model, chain)
    (layer,) = [layer for layer in layers_of(model) if layer.name == dense]
    factors = truncated_svd(kernel, form, rank)
    error = np.linalg.norm(factors.to_dense() - layer.kernel) / np.linalg.norm(layer.kernel)
    replace(layer, form, factors)
    drop_unused_initializers(model.graph)
    refresh_shapes(model)
    return float(error)
