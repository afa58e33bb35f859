"""Win back what compression lost, from ONNX files alone: the small graph learns on its own initialisers to do what the
original does, on inputs without labels (Ba & Caruana, NIPS 2014; hints between layers: Romero et al., ICLR 2015).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from . import checkpoint
from .data.dataset import augment, batch_order
from .denormals import flushed_denormals
from .onnx_module import OnnxModule
from .proximal import DivergedError

HELD_OUT = 0.1  # of the inputs, the last ones: never learned from, they say whether it helped
MOST_HELD_OUT = 1024
WARM_UP = 0.05  # share of the steps in which the step size rises
LOOKS = 10  # times that the held-out inputs are looked at; the best network is kept
SAVE_EVERY_S = 30.0
_LEAST_POWER = 1e-12


@dataclass(frozen=True)
class Settings:
    """How to tune. `augment` is for images: none, shift or flip-shift."""

    steps: int = 1000
    batch: int = 64
    lr: float = 1e-3
    seed: int = 0
    augment: str = "none"


@dataclass(frozen=True)
class Look:
    """The small network on held-out inputs: its squared error relative to the outputs' variance, and how often its
    largest score is the original's (None where the outputs are no class scores).
    """

    step: int
    error: float
    agreement: float | None


@dataclass(frozen=True)
class Progress:
    """What `on_progress` sees."""

    step: int
    steps: int
    loss: float
    left_s: float | None


Feed = Mapping[str, NDArray]


@flushed_denormals()
def tune(
    small: onnx.ModelProto,
    original: onnx.ModelProto,
    inputs: Feed,
    settings: Settings,
    *,
    state: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    save_every_s: float = SAVE_EVERY_S,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[dict[str, NDArray], list[Look]]:
    """The best weights of `small` by name, and the looks at the held-out inputs, the first before any step.

    `inputs` are arrays by input name, n×…; `state` is a file to go on from after an interruption, written now and
    then, with `identity` saying what it belongs to. Raises InputError for graphs that cannot be run in torch or do not
    have the same inputs and outputs, DivergedError for a loss that is no number.
    """
    torch.manual_seed(settings.seed)
    run = _Run(small, original, inputs, settings)
    facts = {**(identity or {}), "settings": asdict(settings)}
    step, looks = 0, list[Look]()
    if state is not None and state.exists():
        step, looks = run.resume(state, facts)
    if not looks:
        looks.append(run.look(0))
        run.keep()
    started, began, saved = step, time.monotonic(), time.monotonic()
    while step < settings.steps:
        loss = run.learn(step)
        step += 1
        if step % max(settings.steps // LOOKS, 1) == 0 or step == settings.steps:
            looks.append(run.look(step))
            if looks[-1].error <= min(look.error for look in looks):
                run.keep()
        if state is not None and time.monotonic() - saved > save_every_s:
            run.save(state, facts | {"step": step, "looks": [asdict(look) for look in looks]})
            saved = time.monotonic()
        left_s = (time.monotonic() - began) / (step - started) * (settings.steps - step)
        on_progress(Progress(step, settings.steps, loss, left_s))
    return run.best(), looks


def held_out(count: int) -> int:
    """How many of `count` inputs are not learned from."""
    return min(max(int(HELD_OUT * count), 1), MOST_HELD_OUT)


class _Run:
    def __init__(self, small: onnx.ModelProto, original: onnx.ModelProto, inputs: Feed, settings: Settings) -> None:
        self.module, self.teacher = OnnxModule(small), OnnxModule(original)
        if set(self.module.inputs) != set(self.teacher.inputs) or set(self.module.outputs) != set(self.teacher.outputs):
            raise InputError("the two models have other inputs or outputs; give the model that this one was made from")
        self.teacher.requires_grad_(False)
        self._settings, self._inputs = settings, inputs
        count = min(len(array) for array in inputs.values())
        held = held_out(count)
        self._learned, self._held = count - held, range(count - held, count)
        if self._learned < settings.batch:
            least = math.ceil(settings.batch / (1 - HELD_OUT))
            raise InputError(f"expected at least {least} inputs for batches of {settings.batch}, found {count}")
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=settings.lr)
        self._kept: dict[str, Tensor] = {}
        self._hints, self._power = self._scaled()

    def learn(self, step: int) -> float:
        """One step; the loss before it."""
        settings = self._settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * schedule(step, settings.steps)
        loss = self._loss(self._batch(step))
        if not torch.isfinite(loss):
            raise DivergedError(f"the loss is {loss.item()} at step {step}; lower the learning rate")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.item())

    def look(self, step: int) -> Look:
        """The held-out inputs."""
        off = power = 0.0
        same = seen = 0
        with torch.no_grad():
            for start in range(self._held.start, self._held.stop, self._settings.batch):
                feed = self._feed(np.arange(start, min(start + self._settings.batch, self._held.stop)))
                found, wanted = self.module(feed), self.teacher(feed)
                for mine, theirs in zip(found, wanted, strict=True):
                    off += float((mine - theirs).square().sum())
                    power += float((theirs - theirs.mean(0)).square().sum())
                if len(found) == 1 and found[0].ndim == 2:
                    same += int((found[0].argmax(1) == wanted[0].argmax(1)).sum())
                    seen += len(found[0])
        return Look(step, off / max(power, _LEAST_POWER), same / seen if seen else None)

    def keep(self) -> None:
        """Remember the weights as they are: the best so far."""
        self._kept = {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def best(self) -> dict[str, NDArray]:
        """The weights of the best look."""
        self.module.load_state_dict(self._kept)
        return self.module.weights()

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """Weights, the best ones, and the optimizer's memory."""
        checkpoint.save(path, self._holder(), self.optimizer, facts)

    def resume(self, path: Path, facts: Mapping[str, Any]) -> tuple[int, list[Look]]:
        """Go on from a file. Raises InputError when it belongs to something else."""
        stored = checkpoint.load(path)
        if {name: stored.facts.get(name) for name in facts} != dict(facts):
            raise InputError(f"{path}: it is from tuning with other files or settings; delete it or repeat those")
        self.keep()
        holder = self._holder()
        checkpoint.restore(stored, holder, self.optimizer)
        self._kept = {name.removeprefix("best."): t for name, t in holder.state_dict().items() if "best." in name}
        return stored.facts["step"], [Look(**look) for look in stored.facts["looks"]]

    def _holder(self) -> torch.nn.Module:
        holder, best = torch.nn.Module(), torch.nn.Module()
        holder.now, holder.best = self.module, best
        for name, value in self._kept.items():
            best.register_buffer(name, value.clone())
        return holder

    def _loss(self, feed: dict[str, Tensor]) -> Tensor:
        names = [*self.module.outputs, *self._hints]
        with torch.no_grad():
            wanted = self.teacher.values(feed)
        found = self.module.values(feed)
        errors = [(found[name] - wanted[name]).square().mean() / self._power[name] for name in names]
        split = len(self.module.outputs)
        hints = torch.stack(errors[split:]).mean() if self._hints else 0.0
        return torch.stack(errors[:split]).mean() + hints

    def _scaled(self) -> tuple[list[str], dict[str, float]]:
        """Values that layers read and both graphs have, with their variances; those of the outputs too."""
        feed = self._feed(np.array(self._held)[: self._settings.batch])
        with torch.no_grad():
            theirs, mine = self.teacher.values(feed), self.module.values(feed)
        hints = [
            name
            for name in self.module.layer_inputs()
            if name in theirs and theirs[name].shape == mine[name].shape and name not in feed
        ]
        power = {}
        for name in (*self.module.outputs, *hints):
            if theirs[name].shape != mine[name].shape:
                raise InputError(f"output '{name}' has another shape than the original's; give the original")
            power[name] = max(float((theirs[name] - theirs[name].mean(0)).square().mean()), _LEAST_POWER)
        return hints, power

    def _batch(self, step: int) -> dict[str, Tensor]:
        settings = self._settings
        feed = self._feed(batch_of(step, self._learned, settings))
        if settings.augment == "none":
            return feed
        return {
            name: _channels_last(augment(t, settings.augment, (settings.seed, step))) if t.ndim == 4 else t
            for name, t in feed.items()
        }

    def _feed(self, chosen: NDArray) -> dict[str, Tensor]:
        found = {name: torch.from_numpy(np.ascontiguousarray(array[chosen])) for name, array in self._inputs.items()}
        return {name: _channels_last(tensor) if tensor.ndim == 4 else tensor for name, tensor in found.items()}


def _channels_last(images: Tensor) -> Tensor:
    """With these torch's convolutions learn a third faster on CPUs."""
    return images.contiguous(memory_format=torch.channels_last)


def batch_of(step: int, count: int, settings: Settings) -> NDArray:
    """Which of `count` inputs a step learns from, ascending."""
    epoch, place = divmod(step, count // settings.batch)
    order = batch_order(count, settings.seed, epoch)
    return np.sort(order[place * settings.batch : (place + 1) * settings.batch])


def schedule(step: int, steps: int) -> float:
    """Share of the largest learning rate: a linear rise, then a cosine to 0."""
    rise = max(WARM_UP * steps, 1)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))
