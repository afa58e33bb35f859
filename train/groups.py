"""Groups of filters, gathered so that one proximal step takes all groups of the same make-up at once.

'filter': every filter of a layer is a group, with its BatchNorm scale and shift (or its bias). 'coupled': the
filters that `export.coupling` finds to live and die together are one group, across layers (the residual stream of
a ResNet); what else is tied to a dead group (columns that read it, a BatchNorm of its own) becomes zero with it.
"""

from __future__ import annotations

import copy
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from .layers import Layer

_FROZEN = -1
_Rows = dict[str, list[int]]


@dataclass(frozen=True)
class Owned:
    """Entries of a parameter along an axis, each with the group (its position in the family) that owns it."""

    parameter: nn.Parameter
    axis: int
    entries: Tensor
    groups: Tensor

    def zero(self, dead: Tensor, memory: Iterable[Tensor]) -> None:
        """Zero the entries of the dead groups (bool, one a group), and the optimizer's memory of them."""
        entries = self.entries[dead[self.groups]]
        for tensor in (self.parameter.data, *memory):
            tensor.index_fill_(self.axis, entries, 0)


@dataclass(frozen=True)
class Family:
    """Groups with equally many filters of the same layers: `members` are a layer and its filters, groups × k."""

    members: tuple[tuple[Layer, Tensor], ...]
    owned: tuple[Owned, ...]

    def rows(self, kernels: Mapping[str, Tensor]) -> Tensor:
        """One group a row: its filters and shifts, from the kernels by layer."""
        parts = [layer.group_rows(kernels[layer.name])[filters] for layer, filters in self.members]
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def write(self, rows: Tensor, kernels: dict[str, Tensor]) -> None:
        """Store the shifts of `rows` in the layers and the filters in `kernels`."""
        first = 0
        for layer, filters in self.members:
            of_layer = layer.group_rows(kernels[layer.name])
            width = filters.shape[1] * of_layer.shape[1]
            part = rows[:, first : first + width]
            of_layer[filters] = part.reshape(*filters.shape, -1)
            kernels[layer.name] = layer.write_group_rows(of_layer)
            first += width

    def live(self) -> Tensor:
        """Groups with a filter that is not zero; bool, one a group."""
        return torch.stack([layer.live()[filters].any(dim=1) for layer, filters in self.members]).any(dim=0)

    def kill(self, dead: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Zero all that belongs to the dead groups; a momentum from before would bring it back, so that too."""
        for owned in self.owned:
            state = optimizer.state.get(owned.parameter, {}).values()
            memory = (t for t in state if isinstance(t, Tensor) and t.shape == owned.parameter.shape)
            owned.zero(dead, memory)


def filter_families(layers: Iterable[Layer]) -> list[Family]:
    """One family a layer, one group a filter; layers without groups have none."""
    found = []
    for layer in layers:
        if layer.has_groups:
            filters = torch.arange(layer.module.weight.shape[0], device=layer.module.weight.device)
            owned = tuple(Owned(parameter, 0, filters, filters) for parameter in layer.owned())
            found.append(Family(((layer, filters[:, None]),), owned))
    return found


def coupled_families(model: nn.Module, layers: Mapping[str, Layer], example_input: Tensor) -> list[Family]:
    """The groups of the graph that `model` is exported as. Raises InputError where it cannot be exported."""
    ties = _ties(model, example_input)
    filters: dict[int, _Rows] = defaultdict(lambda: defaultdict(list))
    for name, layer in layers.items():
        if layer.has_groups:
            for row, group in enumerate(ties.get((f"{name}.weight", 0), ())):
                filters[group][name].append(row)
    filters.pop(_FROZEN, None)
    if not filters:
        raise InputError(f"{type(model).__name__} has no filters that could be removed; use groups='filter'")
    alike: dict[tuple[tuple[str, int], ...], list[int]] = defaultdict(list)
    for group, rows in filters.items():
        alike[tuple((name, len(found)) for name, found in rows.items())].append(group)
    parameters = dict(model.named_parameters())
    found = []
    for make_up, groups in alike.items():
        members = [(layers[name], torch.tensor([filters[group][name] for group in groups])) for name, _ in make_up]
        placed = tuple((layer, rows.to(layer.module.weight.device)) for layer, rows in members)
        found.append(Family(placed, tuple(_owned(groups, ties, parameters))))
    return found


def _owned(
    groups: list[int], ties: Mapping[tuple[str, int], list[int]], parameters: Mapping[str, nn.Parameter]
) -> Iterable[Owned]:
    positions = {group: position for position, group in enumerate(groups)}
    for (name, axis), classes in ties.items():
        pairs = [(entry, positions[group]) for entry, group in enumerate(classes) if group in positions]
        if pairs:
            entries, owners = torch.tensor(pairs, device=parameters[name].device).T
            yield Owned(parameters[name], axis, entries, owners)


def _ties(model: nn.Module, example_input: Tensor) -> dict[tuple[str, int], list[int]]:
    """The class of every entry along the first two axes of the model's parameters, `_FROZEN` where it must stay."""
    from ..export.coupling import couple  # late: training with groups='filter' needs no onnx
    from ..export.from_torch import to_onnx
    from ..export.graphs import load, sizes
    from ..export.passes.canonicalize import canonicalize

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        to_onnx(copy.deepcopy(model).cpu(), example_input.cpu(), path)
        graph = load(path)
    canonicalize(graph)
    coupling = couple(graph.graph)
    frozen = coupling.frozen()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found: dict[tuple[str, int], list[int]] = {}
    for value, axes in coupling.values().items():
        name = value.name or ""
        if value.is_initializer() and shapes.get(name) == tuple(sizes(value)):
            for axis, ids in axes.items():
                classes = coupling.roots(ids).tolist()
                found[name, axis] = [_FROZEN if label in frozen else label for label in classes]
    return found
