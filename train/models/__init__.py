"""Networks by name: `build(spec, in_channels, classes)`.

decomposeme.py  dec3 and dec8: pairs of k×1 and 1×k convolutions
resnet.py       the CIFAR ResNets with option-A shortcuts, and their published weights
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import nn

from ...errors import InputError
from ...records import ModelSpec
from .decomposeme import dec3, dec8
from .resnet import resnet20, resnet56

BUILT_IN: dict[str, Callable[..., nn.Module]] = {
    "dec3": dec3,
    "dec8": dec8,
    "resnet20": resnet20,
    "resnet56": resnet56,
}


def build(spec: ModelSpec, in_channels: int, classes: int) -> nn.Module:
    """The network that a recipe names; `package.module:factory` is imported and called the same way."""
    factory = BUILT_IN.get(spec.name) or imported(spec.name)
    try:
        model = factory(in_channels=in_channels, classes=classes, **spec.arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"model '{spec.name}' with {spec.arguments}: {error}; check [model.arguments]") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model '{spec.name}' made a {type(model).__name__}, expected a torch.nn.Module")
    return model


def imported(name: str) -> Callable[..., nn.Module]:
    """The factory that `package.module:factory` names."""
    module_name, _, attribute = name.partition(":")
    if not attribute:
        raise InputError(f"unknown model '{name}'; use one of {', '.join(BUILT_IN)} or package.module:factory")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"model '{name}': {error}; it must be importable and callable") from error
