"""A guard against collapse and divergence: it watches the loss, goes back to the last good state, and says so.

    guard = Guard(regularizer, chance=math.log(classes))
    for inputs, labels in batches:
        ...; optimizer.step()
        guard.step(loss.item())  # in place of regularizer.step()

And which layer was the first to put out NaN.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint, processes
from .proximal import DivergedError
from .regularizer import CompressionAware

SPAN = 30  # steps that the mean loss reaches back, and between two looks for a better state to keep
PATIENCE = 200  # steps in which a network must have learned something
_ARMED, _NOTHING = 0.9, 0.98  # of chance: a mean loss below has learned something, above nothing
_NEAR, _FAR = 0.1, 0.5  # of the way from the best mean loss back to chance: still good, collapsed
_LITTLE = 0.25  # of the dense MACs: too few for a network that has learned nothing yet
_LIMIT = 6  # times back: strengths have fallen 4,000-fold by then


class Guard:
    """Goes back when the mean loss of a shrinking network has come half of the way from its best to `chance` again,
    when it has learned nothing in `patience` steps, or is down to a quarter of its MACs before it has, or when the loss
    or a weight is not finite.

    regularizer    takes the proximal steps; its strengths are lowered each time, and its `events` say why.
    chance         mean loss of a network that has learned nothing: ln C for C classes that are equally frequent.
    patience       optimizer steps; more for a network that is slow to begin.

    It is over once a structure is held and the loss is good. All state is in `state_dict()` and `good`, copies of
    tensors. Under torch.distributed the loss is averaged over the processes.
    """

    def __init__(self, regularizer: CompressionAware, chance: float, patience: int = PATIENCE) -> None:
        self._regularizer, self._chance, self._patience = regularizer, chance, patience
        self.good: dict[str, Tensor] = {}
        self._mean = self._best = self._kept_mean = math.inf
        self._seen = self._times = 0
        self._over = False

    def step(self, loss: float) -> bool:
        """Call after every `optimizer.step()` in place of `regularizer.step()`, with the loss before it; True where the
        network went back. Raises DivergedError where it has gone back too often.
        """
        loss = processes.total(loss)[0] / processes.count()
        if not math.isfinite(loss):
            return self.go_back(f"the loss is {loss}")
        if not self.good and not self._over:
            self._keep()
        try:
            has_shrunk = self._regularizer.step()
        except DivergedError as error:
            return self.go_back(str(error))
        why = None if self._over else self._judge(loss, has_shrunk=has_shrunk)
        return why is not None and self.go_back(why)

    def go_back(self, why: str) -> bool:
        """Return to the last good state with weaker strengths; True. Raises DivergedError where that does not help."""
        if not self.good or self._times == _LIMIT:
            back = f"going back {self._times} times did not help, " if self._times else ""
            raise DivergedError(f"{why}; {back}lower the learning rate")
        self._times += 1
        checkpoint.put_back(self.good, self._regularizer.model, self._regularizer.optimizer)
        self._regularizer.relent(why)
        self._mean, self._seen = self._kept_mean, 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON; `good` goes beside them."""
        numbers = {"mean": self._mean, "best": self._best, "kept_mean": self._kept_mean}
        return {
            **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
            "seen": self._seen,
            "times": self._times,
            "over": self._over,
        }

    def load_state_dict(self, state: dict[str, Any], good: dict[str, Tensor]) -> None:
        """Take up where `state_dict()` was made."""
        numbers = (state["mean"], state["best"], state["kept_mean"])
        self._mean, self._best, self._kept_mean = (math.inf if value is None else value for value in numbers)
        self._seen, self._times, self._over = state["seen"], state["times"], state["over"]
        self.good = good

    def _judge(self, loss: float, *, has_shrunk: bool) -> str | None:
        """Why to go back; None while all is well."""
        self._mean = loss if math.isinf(self._mean) else self._mean + (loss - self._mean) / SPAN
        self._seen += 1
        if self._seen % SPAN == 0:
            self._look()
        armed = self._best < _ARMED * self._chance
        if armed and self._seen >= SPAN and self._way_back() > _FAR:
            return f"the loss has risen from {self._best:.3g} to {self._mean:.3g}, where {self._chance:.3g} is chance"
        is_led = self._regularizer.is_steered  # to the MACs that it has
        if has_shrunk and not is_led and min(self._mean, self._best) >= _ARMED * self._chance:
            now, dense = self._regularizer.macs()
            if now < _LITTLE * dense:
                return f"{now / dense:.1%} of the MACs are left, and nothing has been learned yet"
        if not armed and self._seen >= self._patience and self._mean > _NOTHING * self._chance:
            return f"the loss is {self._mean:.3g} after {self._seen} steps, where {self._chance:.3g} is chance"
        return None

    def _look(self) -> None:
        """Keep a state that is about as good as the best; a network that has learned nothing yet keeps its first."""
        self._best = min(self._best, self._mean)
        if self._best < _ARMED * self._chance and self._way_back() <= _NEAR:
            if self._regularizer.is_held:
                self.good, self._over = {}, True
            else:
                self._keep()

    def _way_back(self) -> float:
        return (self._mean - self._best) / (self._chance - self._best)

    def _keep(self) -> None:
        self.good = checkpoint.copy_of(self._regularizer.model, self._regularizer.optimizer)
        self._kept_mean = self._mean


@torch.no_grad()
def ill_layer(model: nn.Module, batch: Tensor) -> str | None:
    """Name of the first module whose output of a batch (N×…) is not finite; None where all are."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                found.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
