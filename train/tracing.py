"""What surrounds each layer: the BatchNorm that follows it and the layer that feeds it, read off a torch.fx trace."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError
from torch.nn import functional as F

from ..errors import InputError

ConvOrLinear = nn.Conv1d | nn.Conv2d | nn.Linear
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)

# Operations that act on each channel alone and map a channel of zeros to zeros.
_ZERO_KEEPING_MODULES = (
    *_NORMS,  # a dead channel's γ and β are zero
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh, nn.Identity, nn.Flatten,
    nn.Dropout, nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_ZERO_KEEPING_FUNCTIONS = {
    F.relu,
    torch.relu,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    torch.flatten,
}
_ADDITIONS = {operator.add, operator.iadd, torch.add}
_ZERO_KEEPING_METHODS = {"relu", "flatten", "contiguous"}


@dataclass(frozen=True)
class Surroundings:
    """`norm`: the BatchNorm that alone reads the layer's output. `producer`: the layer whose output channels
    are this layer's input channels, with only zero-keeping operations between. `is_output`: no layer follows.
    """

    norm: BatchNorm | None
    producer: str | None
    is_output: bool


def surroundings(model: nn.Module) -> dict[str, Surroundings]:
    """For each Conv1d, Conv2d and Linear of `model` by name, what is around it."""
    modules = dict(model.named_modules())
    nodes = _layer_nodes(_trace(model), modules)
    downstream = _producers(nodes)
    feeding = {producer for producers in downstream.values() for producer in producers}
    return {
        name: Surroundings(
            norm=_following_norm(node, modules),
            producer=_single_producer(node, modules),
            is_output=name not in feeding,
        )
        for name, node in nodes.items()
    }


def padded_to(model: nn.Module) -> dict[str, str]:
    """For each ZeroPad3d of `model` that puts channels beside those of N×C×H×W and is then added to a layer's output,
    by name: that layer, whose channels are those it puts out.
    """
    modules = dict(model.named_modules())
    pads = {name for name, module in modules.items() if isinstance(module, nn.ZeroPad3d)}
    found: dict[str, str] = {}
    for node in _trace(model).nodes if pads else ():
        if node.op == "call_function" and node.target in _ADDITIONS:
            ends = [_origin(source, modules) for source in node.all_input_nodes]
            names = [str(end.target) for end in ends if end is not None and end.op == "call_module"]
            layers = [name for name in names if isinstance(modules[name], _LAYERS)]
            found |= {name: layers[0] for name in names if name in pads and layers}
    return found


def _trace(model: nn.Module) -> fx.Graph:
    was_training = model.training
    try:
        return fx.Tracer().trace(model.eval())
    except (TraceError, TypeError, NameError, RuntimeError) as error:
        raise InputError(
            f"torch.fx cannot trace {type(model).__name__} ({str(error).splitlines()[0][:90]}), so the BatchNorm "
            "after each layer is unknown; use scale='raw' with relative=True and group=0, or make the forward traceable"
        ) from error
    finally:
        model.train(was_training)


def _layer_nodes(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[str, fx.Node]:
    """The node of each layer that the forward calls exactly once (a shared layer is left alone)."""
    calls = [node for node in graph.nodes if node.op == "call_module" and isinstance(modules[node.target], _LAYERS)]
    targets = [node.target for node in calls]
    return {node.target: node for node in calls if targets.count(node.target) == 1}


def _following_norm(node: fx.Node, modules: dict[str, nn.Module]) -> BatchNorm | None:
    users = list(node.users)
    if len(users) == 1 and users[0].op == "call_module":
        module = modules[str(users[0].target)]
        if isinstance(module, _NORMS) and module.affine and module.track_running_stats:
            return module
    return None


def _keeps_zero(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _ZERO_KEEPING_MODULES)
    if node.op == "call_function":
        return node.target in _ZERO_KEEPING_FUNCTIONS
    if node.op == "call_method":
        return node.target in _ZERO_KEEPING_METHODS or node.target == "mean"
    return False


def _single_producer(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    source = _origin(node.args[0] if node.args else None, modules)
    if source is not None and source.op == "call_module" and isinstance(modules[str(source.target)], _LAYERS):
        return str(source.target)
    return None


def _origin(source: object, modules: dict[str, nn.Module]) -> fx.Node | None:
    """What lies behind the operations that act on each channel alone."""
    while isinstance(source, fx.Node) and _keeps_zero(source, modules):
        source = source.args[0]
    return source if isinstance(source, fx.Node) else None


def _producers(nodes: dict[str, fx.Node]) -> dict[str, set[str]]:
    """For each layer, all layers whose output reaches it without passing another layer."""
    names = {node: name for name, node in nodes.items()}
    found: dict[str, set[str]] = {}
    for name, node in nodes.items():
        stack, seen = list(node.all_input_nodes), set()
        found[name] = set()
        while stack:
            source = stack.pop()
            if source in seen or source.op == "get_attr":
                continue
            seen.add(source)
            if source in names:
                found[name].add(names[source])
            else:
                stack.extend(source.all_input_nodes)
    return found
