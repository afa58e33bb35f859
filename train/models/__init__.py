"""Networks by name: `build(spec, in_channels, classes)`.

decomposeme.py  dec3 and dec8: pairs of k×1 and 1×k convolutions
resnet.py       the CIFAR ResNets with option-A shortcuts
resnet50.py     ResNet-50 for ImageNet, by torchvision's names
weights.py      weights from a file
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ...errors import InputError
from ...records import ModelSpec
from .decomposeme import dec3, dec8
from .resnet import resnet20, resnet56
from .resnet50 import resnet50
from .weights import load_weights

BUILT_IN: dict[str, Callable[..., nn.Module]] = {
    "dec3": dec3,
    "dec8": dec8,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "resnet50": resnet50,
}
_WEIGHTS = "weights"
# What packages call the two sizes where a factory hands all keywords on (torchvision's takes colour images only).
_CHANNEL_NAMES, _CLASS_NAMES = ("in_channels", "in_chans"), ("classes", "num_classes")
_KEYWORDS_OF = {"timm": ("in_chans", "num_classes"), "torchvision": (None, "num_classes")}
_COLOURS = 3


def build(spec: ModelSpec, in_channels: int, classes: int, *, load: bool = True) -> nn.Module:
    """The network that a recipe names: a built-in one, or what `package.module:factory` makes.

    `weights` among its arguments is a file that is loaded into it, if `load`; the other arguments are the factory's.
    """
    factory = BUILT_IN.get(spec.name) or imported(spec.name)
    arguments = {key: value for key, value in spec.arguments.items() if key != _WEIGHTS}
    if arguments.get("pretrained"):
        raise InputError(f"model '{spec.name}': pretrained would download; give the weights as a file: --weights FILE")
    sizes = _sizes(factory, spec.name, in_channels, classes)
    try:
        model = factory(**sizes, **arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"model '{spec.name}' with {arguments}: {error}; check [model.arguments]") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model '{spec.name}' made a {type(model).__name__}, expected a torch.nn.Module")
    if load and spec.arguments.get(_WEIGHTS) is not None:
        load_weights(model, Path(str(spec.arguments[_WEIGHTS])))
    return model


def _sizes(factory: Callable[..., Any], name: str, in_channels: int, classes: int) -> dict[str, int]:
    """The two sizes by the names that the factory has for them."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # written in C
        parameters = {}
    channel_key = next((key for key in _CHANNEL_NAMES if key in parameters), None)
    class_key = next((key for key in _CLASS_NAMES if key in parameters), None)
    if channel_key is None and class_key is None:
        channel_key, class_key = _KEYWORDS_OF.get(re.split("[.:]", name)[0], ("in_channels", "classes"))
    if channel_key is None and in_channels != _COLOURS:
        raise InputError(f"model '{name}' takes images of {_COLOURS} channels, the data has {in_channels}")
    return {class_key or "classes": classes} | ({} if channel_key is None else {channel_key: in_channels})


def imported(name: str) -> Callable[..., nn.Module]:
    """The factory that `package.module:factory` names."""
    module_name, _, attribute = name.partition(":")
    if not attribute:
        raise InputError(f"unknown model '{name}'; use one of {', '.join(BUILT_IN)} or package.module:factory")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"model '{name}': {error}; it must be importable and callable") from error
