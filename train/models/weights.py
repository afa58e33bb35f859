"""Weights from a file into a network: safetensors, or what torch.save wrote, read without running anything in it."""

from __future__ import annotations

import warnings
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises for what it will not read

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import InputError

# What garbage makes torch's and safetensors' readers raise.
_UNREADABLE = (
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    UnpicklingError,
    SafetensorError,
)
_WRAPPERS = ("state_dict", "model")  # under which training scripts keep the state dict
_PREFIX = "module."  # that DistributedDataParallel gives every name


def load_weights(model: nn.Module, path: Path) -> None:
    """Put the weights in `path` into `model`, every tensor of it. Raises InputError for weights of another network."""
    state = {name.removeprefix(_PREFIX): value for name, value in _read(path).items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"weights {path}: {str(error).splitlines()[-1].strip()[:200]}; wrong network?") from error


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of another pickle protocol, before it refuses or reads it
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read weights {path}: {error.strerror or error}; check the path") from error
    except _UNREADABLE as error:
        raise InputError(f"weights {path}: not plain weights ({' '.join(str(error).split())[:80]})") from error
    for wrapper in _WRAPPERS:
        if isinstance(stored, dict) and isinstance(stored.get(wrapper), dict):
            stored = stored[wrapper]
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise InputError(f"weights {path}: expected tensors by name, found something else; save model.state_dict()")
    return stored
