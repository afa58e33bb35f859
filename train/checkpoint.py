"""Checkpoints: one safetensors file that holds all there is to a run, written whole or not at all.

Tensors are `model.*` and `optimizer.*`, `teacher.*` where a network learns from another, and `good.*`, the state that
the guard would go back to; the rest (recipe, seed, plan, step, history, running sums, regularizer, guard, gradient
scaler) is JSON in the file's metadata. Randomness needs no state: it is a function of seed and step.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import InputError
from ..files import replacing

FORMAT = "1"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by prefixed name, and JSON-able facts."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def model_state(self) -> dict[str, Tensor]:
        """The network's state dict."""
        return _without_prefix(self.tensors, "model.")

    def good_state(self) -> dict[str, Tensor]:
        """What the guard would go back to (`copy_of`), empty where there is nothing."""
        return _without_prefix(self.tensors, "good.")

    def teacher_state(self) -> dict[str, Tensor]:
        """The state dict of the network that it learns from, empty where there is none."""
        return _without_prefix(self.tensors, "teacher.")


def save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    facts: dict[str, Any],
    teacher: nn.Module | None = None,
    good: dict[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint atomically."""
    tensors = _tensors_of(model, optimizer)
    if teacher is not None:
        tensors |= {f"teacher.{name}": value for name, value in teacher.state_dict().items()}
    tensors |= {f"good.{name}": value for name, value in (good or {}).items()}
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(plain, temporary, metadata={"rankfold.format": FORMAT, "rankfold.facts": json.dumps(facts)})
        except SafetensorError as error:  # it wraps the operating system's errors: a full disk, say
            raise InputError(f"cannot write {path}: {error}; choose another output") from error


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; a truncated or foreign file is refused in one line."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("rankfold.format") != FORMAT:
                raise InputError(f"{path}: not a rankfold checkpoint of format {FORMAT}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return Checkpoint(tensors, json.loads(metadata["rankfold.facts"]))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: truncated or not a checkpoint ({str(error)[:80]}); train again") from error


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Put a checkpoint's tensors into a network (and its optimizer) in place, memory layout kept."""
    load_state(model, checkpoint.model_state())
    if optimizer is not None:
        _restore_optimizer(optimizer, _without_prefix(checkpoint.tensors, "optimizer."))


def copy_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All numbers of a network and its optimizer as they are now, to put back later."""
    return {name: value.detach().clone() for name, value in _tensors_of(model, optimizer).items()}


def put_back(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Make a network and its optimizer again what they were at a `copy_of`."""
    for memory in optimizer.state.values():
        for key in [key for key, value in memory.items() if isinstance(value, Tensor)]:
            del memory[key]
    restore(Checkpoint(tensors, {}), model, optimizer)


def load_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put a state dict into a network in place. Raises InputError when it is another network's."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        last = str(error).splitlines()[-1].strip()
        raise InputError(f"the checkpoint is of another network: {last[:120]}") from error


def _tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    return tensors | {f"optimizer.{name}": value for name, value in _optimizer_tensors(optimizer).items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    named = {}
    for group_index, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            for key, value in optimizer.state[parameter].items():
                if isinstance(value, Tensor):
                    named[f"{group_index}.{index}.{key}"] = value
    return named


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    for name, value in tensors.items():
        group_index, index, key = name.split(".")
        parameter = optimizer.param_groups[int(group_index)]["params"][int(index)]
        buffer = torch.empty_like(parameter) if value.shape == parameter.shape else torch.empty_like(value)
        optimizer.state[parameter][key] = buffer.copy_(value)


def _without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
