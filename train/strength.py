"""How strong the penalties are now: the strengths given, for each layer, and all that multiplies them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

STRONGEST = 1e6  # multiple of the strengths given
RELIEF = 0.25  # of the strengths is left after the network has collapsed

Kind = Literal["low_rank", "group"]


class Strengths:
    """τ and λ by layer. They rise over `ramp` optimizer steps after `start_at`; `steered` multiplies both, or τ alone;
    a collapse of the network leaves `RELIEF` of both, one of a layer a factor of its own.
    """

    def __init__(
        self, tau: Mapping[str, float], group: Mapping[str, float], *, start_at: int, ramp: int, tau_alone: bool
    ) -> None:
        self.tau, self._group = tau, group
        self._start_at, self._ramp, self._tau_alone = start_at, ramp, tau_alone
        self.steered, self.most, self.relief = 1.0, STRONGEST, 1.0
        self.eased: dict[Kind, dict[str, float]] = {"low_rank": {}, "group": {}}

    @property
    def multiple(self) -> float:
        """What both are multiplied with, in every layer."""
        return self.steered * self.relief

    def low_rank(self, layer: str, step: int) -> float:
        """τ of a layer now."""
        return self.tau[layer] * self._rise(step) * self.multiple * self.eased["low_rank"].get(layer, 1.0)

    def given(self, layers: Sequence[str]) -> float:
        """λ of groups that lie in several layers, as it was given: the mean of theirs."""
        return fmean(self._group[layer] for layer in layers)

    def group(self, layers: Sequence[str], step: int) -> float:
        """The same now."""
        multiple = self.relief if self._tau_alone else self.multiple
        return self.given(layers) * self._rise(step) * multiple * self.eased["group"].get(layers[0], 1.0)

    def ease(self, kind: Kind, layer: str, factor: float) -> float:
        """Multiply the strength of one layer for good; what it has come to."""
        self.eased[kind][layer] = factor * self.eased[kind].get(layer, 1.0)
        return self.eased[kind][layer]

    def relent(self) -> None:
        """Lower all for good; steering does not make up for it."""
        self.relief *= RELIEF
        self.most = min(self.most, self.steered)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        eased = {kind: dict(factors) for kind, factors in self.eased.items()}
        return {"steered": self.steered, "most": self.most, "relief": self.relief, "eased": eased}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict()` was made."""
        self.steered, self.most, self.relief = state["steered"], state["most"], state["relief"]
        self.eased = {"low_rank": dict(state["eased"]["low_rank"]), "group": dict(state["eased"]["group"])}

    def _rise(self, step: int) -> float:
        return min(1.0, (step - self._start_at) / self._ramp) if self._ramp else 1.0
