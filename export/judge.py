"""What a choice loses of the metric, judged on data that it was not fitted to, before it is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from ..errors import InputError
from ..records import Damage, Drop, LayerDecision, Plan, kept_by_layer
from .calibration import Samples, every
from .damage import Candidate, damage_of
from .layers import layers_of
from .network import Network
from .reporting import silent
from .widths import Widths

LEAST = 32  # inputs to judge on


def require_enough(samples: Samples | None, option: str) -> Samples:
    """The inputs to judge on. Raises InputError where there are too few."""
    if samples is None or samples.count < LEAST:
        found = "none" if samples is None else str(samples.count)
        raise InputError(f"{option}: expected --data with {LEAST} inputs or more, found {found}")
    return samples


def require_classes(model: onnx.ModelProto, samples: Samples) -> None:
    """Raises InputError where the model puts out no class scores: one output, inputs × classes."""
    if damage_of(model, model, samples, 1).agreement is None:
        raise InputError("--max-drop: expected a model that puts out class scores, found another; use --damage")


@dataclass(frozen=True)
class Judge:
    """Builds a choice on one half of the calibration data and judges it on the other, then the other way round: what a
    network loses on inputs that it was not fitted to. Top-1 where there are labels, else agreement with the original.
    """

    network: Network
    widths: Widths | None
    tile: int

    def __call__(self, candidates: Mapping[str, Candidate | None], widths: Mapping[str, int]) -> Drop:
        """The mean over both halves."""
        return _mean_drop([self.damage(candidates, widths, first) for first in range(2)])

    def damage(self, candidates: Mapping[str, Candidate | None], widths: Mapping[str, int], first: int = 0) -> Damage:
        """Fitted to the half that begins with this input, judged on the other."""
        samples = self.network.samples
        assert samples is not None, "checked before"
        small = self._built(candidates, widths, every(samples, 2, first))
        judged_on = every(samples, 2, 1 - first)
        return damage_of(self.network.reference, ir.to_proto(small), judged_on, judged_on.count)

    def _built(
        self, candidates: Mapping[str, Candidate | None], widths: Mapping[str, int], samples: Samples
    ) -> ir.Model:
        model = ir.from_proto(self.network.original)
        truth, kept = self.network.truth, self.network.kept
        if self.widths is not None and self.widths.dead(widths):
            truth, kept = self.network.original, kept_by_layer(self.widths.apply(model, widths, self.tile, samples))
        layers = {
            layer.name: LayerDecision.model_validate({"form": one.form, "ranks": list(one.ranks), "reason": "chosen"})
            for layer in layers_of(model)
            if (one := candidates.get(layer.name)) is not None
        }
        Network(model, samples, silent, truth, kept).factorize(Plan(tile=self.tile, groups={}, layers=layers))
        return model


def _mean_drop(found: Sequence[Damage]) -> Drop:
    agreements = [one.agreement for one in found if one.agreement is not None]
    n = sum(one.n for one in found)
    changed = sum((1 - share) * one.n for share, one in zip(agreements, found, strict=True)) / n
    right = [(one.top1_before, one.top1_after, one.n) for one in found]
    lost = sum((before - after) * m for before, after, m in right if before is not None and after is not None) / n
    labelled = found[0].top1_before is not None
    error = math.sqrt(changed / n)  # a class that changes is won or lost: no less than the variance of a difference
    return Drop(metric="top-1" if labelled else "agreement", n=n, value=lost if labelled else changed, error=error)
