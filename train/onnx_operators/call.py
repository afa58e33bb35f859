"""What the functions of operators share: a node as they see it, and the table they stand in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ...errors import InputError

Function = Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """A node as its function sees it: attributes by name, how many outputs are read, the graph's opset."""

    operator: str
    attributes: Mapping[str, Any]
    outputs: int
    opset: int

    def get(self, name: str, default: Any) -> Any:
        """An attribute, strings as text."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def refuse(self, why: str) -> InputError:
        """What to raise for a variant that is not covered."""
        return InputError(f"{self.operator} with {why} cannot be tuned; tune a graph without it")


class Table(dict[str, Function]):
    """Functions by the operator they compute."""

    def of(self, *names: str) -> Callable[[Function], Function]:
        """Put the decorated function in for these operators."""

        def add(function: Function) -> Function:
            self.update(dict.fromkeys(names, function))
            return function

        return add


def ints(tensor: Tensor | None) -> list[int] | None:
    """Its numbers; None where there is none."""
    return None if tensor is None else [int(number) for number in tensor.reshape(-1).tolist()]


def axes_of(call: Call, tensor: Tensor | None, default: Sequence[int]) -> list[int]:
    """Axes as an input (newer opsets) or an attribute (older ones)."""
    found = ints(tensor)
    return list(call.get("axes", default)) if found is None else found


def padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Begins, then ends, an axis each, of constant `value`."""
    half = len(pads) // 2
    if not any(pads):
        return x
    pairs = zip(reversed(pads[:half]), reversed(pads[half:]), strict=True)
    return F.pad(x, [size for pair in pairs for size in pair], value=value)
