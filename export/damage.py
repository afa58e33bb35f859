"""What each candidate for a layer would cost and damage: every useful form at a few ranks.

Loss is the share of the layer's output variance that goes (`Moments.score`); damage is what that does to the model's
outputs. It is measured for a few candidates of each layer, put into the otherwise dense model, and follows a power law
between them: a layer in front of few classes forgives much, until its rank falls below their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from ..records import Damage
from .aware import Moments, Unweighted, whitened
from .calibration import Samples
from .decompose import Factors
from .forms import AnyForm, resolve_any
from .graphs import with_weights
from .layers import Layer
from .tile import spread, up_to_tile
from .walk import BATCH, Walk

EFFECT_SAMPLES = 256  # inputs that a layer's effect on the outputs is measured with
Objective = Literal["macs", "parameters"]
RANKS = 12  # candidates a form; between two of them the damage is nearly linear in the MACs
_PROBED = (0.02, 0.1, 0.4)  # losses of a layer's output whose damage to the model is measured
_FEW_PROBED = (0.1,)  # the same, and the inputs, where a run of the model is long
_FEW_SAMPLES = BATCH
_LONG_MACS = 5e10
_IMPROVED = 5e8  # scoring goes without alternating least squares above it: a 3×3 layer of 256 channels and more
_LEAST = 1e-12


class Scale:
    """What a loss of a layer's output does to the model's: measured at a few losses, between them a power law, beyond
    them in proportion; without a measurement the loss itself.
    """

    def __init__(self, measured: Mapping[float, float]) -> None:
        self._at = np.log(np.maximum(sorted(measured), _LEAST))
        damages = [measured[loss] for loss in sorted(measured)]
        self._damages = np.maximum.accumulate(np.log(np.maximum(damages, _LEAST))) if damages else np.zeros(0)

    def __call__(self, loss: float) -> float:
        """The damage."""
        if not len(self._at):
            return loss
        log = float(np.log(max(loss, _LEAST)))
        inner = float(np.interp(log, self._at, self._damages))
        return float(np.exp(inner + min(log - self._at[0], 0) + max(log - self._at[-1], 0)))


@dataclass(frozen=True)
class Scored:
    """A layer's candidates, and what any other loss of its output would do."""

    candidates: list[Candidate]
    scale: Scale


@dataclass(frozen=True)
class Candidate:
    """One way to write a layer: `loss` is the layer's, `damage` the model's."""

    form: str
    ranks: tuple[int, ...]
    macs: int
    parameters: int
    loss: float
    damage: float


def ranks_to_try(form: AnyForm, layer: Layer, tile: int, objective: Objective = "macs") -> list[int]:
    """Ranks that save MACs (or parameters), on the tile, at most `RANKS` of them, evenly spread in the rank."""
    if layer.pixels is None:
        return []
    full = form.full_rank(layer.shape)
    if objective == "macs":
        most = min(form.break_even(layer.shape, layer.pixels), full)
    else:
        most = min((layer.kernel.size - 1) // form.parameters(layer.shape, 1), full)
    on_tile = sorted({min(up_to_tile(rank, tile), full) for rank in range(1, most + 1)} & set(range(1, most + 1)))
    return spread(on_tile, RANKS)


def scored(
    layer: Layer,
    forms: Sequence[str],
    tile: int,
    moments: Moments | None = None,
    effects: Effects | None = None,
    objective: Objective = "macs",
) -> Scored:
    """All of a layer's candidates; `effects` measures what factors in its place do to the model's outputs.

    Without moments the loss is the share of the squared norm of the kernel; without `effects` it is the damage too.
    """
    assert layer.pixels is not None, f"the sizes of layer {layer.name!r} are unknown"
    if moments is None:
        judge = Unweighted(layer.kernel)
        factored = partial(judge.factors, improved=False)
    else:
        judge, target = moments, whitened(layer.kernel, moments)
        factored = partial(target.factors, improved=target.work <= _IMPROVED)
    found: list[tuple[AnyForm, int, Factors, float]] = []
    for form in distinct(forms, layer):
        for rank in ranks_to_try(form, layer, tile, objective):
            factors = factored(form, form.ranks(layer.shape, rank))
            found.append((form, rank, factors, judge.score(factors.to_dense())))
    scale = _scale(layer, [(loss, factors) for _, _, factors, loss in found], effects)
    made = [
        Candidate(
            form.name,
            form.ranks(layer.shape, rank),
            form.macs(layer.shape, rank, layer.pixels),
            form.parameters(layer.shape, rank),
            loss,
            scale(loss),
        )
        for form, rank, _, loss in found
    ]
    return Scored(made, scale)


def _scale(layer: Layer, found: Sequence[tuple[float, Factors]], effects: Effects | None) -> Scale:
    """Measured at the candidates nearest to the losses probed."""
    if effects is None or not found:
        return Scale({})
    losses = np.log([max(loss, _LEAST) for loss, _ in found])
    nearest = {int(np.argmin(np.abs(losses - np.log(loss)))) for loss in effects.probed}
    return Scale({found[index][0]: effects.of(layer, found[index][1]) for index in nearest})


def distinct(forms: Sequence[str], layer: Layer) -> list[AnyForm]:
    """The forms that these names come down to for a layer, each once."""
    resolved = {form.name: form for form in (resolve_any(name, layer.shape) for name in forms)}
    return list(resolved.values())


class Effects:
    """How the model's outputs answer to a damaged layer: their squared error, relative to their variance.

    `walk` is through the undamaged model of `macs`, and stands before the layer that is asked about.
    """

    def __init__(self, walk: Walk, macs: int) -> None:
        self._walk = walk
        is_long = macs * min(walk.samples.count, EFFECT_SAMPLES) > _LONG_MACS
        self.probed = _FEW_PROBED if is_long else _PROBED
        self._count = _FEW_SAMPLES if is_long else EFFECT_SAMPLES
        self._truth = self._outputs(walk.proto)
        self._power = sum(float(np.sum(np.square(y - y.mean(axis=0)))) for y in self._truth)

    def of(self, layer: Layer, factors: Factors) -> float:
        """The outputs' error with these factors in place of the layer."""
        weight = layer.node.inputs[1]
        assert weight is not None, f"layer {layer.name!r} has no weight"
        damaged = {weight.name or "": layer.stored(factors.to_dense())}
        off = self._outputs(with_weights(self._walk.proto, damaged))
        error = sum(float(np.sum(np.square(a - b))) for a, b in zip(off, self._truth, strict=True))
        return error / self._power if self._power > 0 else 0.0

    def _outputs(self, proto: onnx.ModelProto) -> list[NDArray]:
        names = [entry.name for entry in proto.graph.output]
        runs = list(self._walk.peek(names, proto, count=self._count))
        return [
            np.concatenate([np.asarray(run[index], np.float64) for run in runs])
            for index in range(len(names))
            if np.asarray(runs[0][index]).dtype.kind == "f"
        ]


def damage_of(original: onnx.ModelProto, small: onnx.ModelProto, samples: Samples, most: int) -> Damage:
    """What became of the outputs, over the first `most` samples."""
    names = [entry.name for entry in original.graph.output]
    walks = [Walk(model, samples) for model in (original, small)]
    count = min(most, walks[0].samples.count)
    wanted, found = (
        [_rows(batches)[:count] for batches in zip(*walk.peek(names, count=count), strict=True)] for walk in walks
    )
    numbers = [(mine, theirs) for mine, theirs in zip(found, wanted, strict=True) if theirs.dtype.kind == "f"]
    power = sum(float(np.square(theirs - theirs.mean(axis=0)).sum()) for _, theirs in numbers)
    error = sum(float(np.square(mine - theirs).sum()) for mine, theirs in numbers)
    agreement = before = after = None
    if len(names) == 1 and wanted[0].ndim == 2 and wanted[0].shape[1] > 1 and numbers:
        best, now = wanted[0].argmax(axis=1), found[0].argmax(axis=1)
        agreement = float(np.mean(best == now))
        if samples.labels is not None:
            before, after = (float(np.mean(one == samples.labels[:count])) for one in (best, now))
    return Damage(
        data=samples.name,
        n=count,
        error=error / power if power > 0 else error,
        agreement=agreement,
        top1_before=before,
        top1_after=after,
    )


def _rows(batches: Sequence[NDArray]) -> NDArray:
    joined = np.concatenate(batches) if np.ndim(batches[0]) else np.stack(batches)
    return joined.astype(np.float64) if joined.dtype.kind == "f" else joined
