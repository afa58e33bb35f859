"""Where a model's time goes: the runtime's profile by node, joined to the layers of the plan that made the model.

The runtime optimises a graph before it runs it: it fuses activations and additions into convolutions, names the result
after the last output, and puts reorders of the layout between its blocked kernels and all others. So a profiled node
belongs to the layer that it is named after, or to the nearest one upstream.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from ..devices.transport import profile
from ..errors import RankfoldError
from ..records import OperatorTable, OperatorTime, Plan
from .onnxfile import read
from .serving import Board, Model, naming

RUNS = 50
_LIMIT_S = 600.0
_LAYERS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm",
)  # fmt: skip
_LAYOUT = ("ReorderInput", "ReorderOutput", "Transpose")
_SUFFIX = re.compile(r"(_nchwc|_token_\d+)+$")
_FACTOR = re.compile(r"_[vcu]$")
_KEPT = 0.5  # share of the runs that count, the fastest: what disturbs a run falls on some node


@dataclass(frozen=True)
class Share:
    """Seconds of a run, and as a share of the sum over all nodes."""

    name: str
    seconds: float
    share: float


def operators(board: Board, model: Model) -> OperatorTable:
    """Profile a model in a process of its own."""
    with board.transport.launch() as process, naming(model.name):
        found = profile(process, board.request(model), RUNS, _LIMIT_S)
    layers = layers_by_node(read(model.path), [(node.name, node.op) for node in found.nodes])
    nodes = [OperatorTime(layer=layers[node.name], **node.model_dump()) for node in found.nodes]
    return OperatorTable(variant=model.name, runs_s=found.runs_s, nodes=nodes)


# --- what a table says ---------------------------------------------------------------------------------------


def node_seconds(table: OperatorTable) -> list[float]:
    """Mean seconds of each node over the faster half of the runs: they add up."""
    kept = np.argsort(table.runs_s)[: max(round(_KEPT * len(table.runs_s)), 1)]
    return [float(np.mean(np.asarray(node.samples_s)[kept])) for node in table.nodes]


def accounted(table: OperatorTable) -> float:
    """The sum over nodes as a share of the whole run: the rest is the runtime between them."""
    kept = np.sort(table.runs_s)[: max(round(_KEPT * len(table.runs_s)), 1)]
    return sum(node_seconds(table)) / float(np.mean(kept))


def by_layer(table: OperatorTable) -> list[Share]:
    """Time by layer of the plan, what belongs to none by its operator, the longest first."""
    return _shares((node.layer or f"({node.op})" for node in table.nodes), node_seconds(table))


def by_operator(table: OperatorTable) -> list[Share]:
    """Time by operator, the longest first."""
    return _shares((node.op for node in table.nodes), node_seconds(table))


def by_provider(table: OperatorTable) -> list[Share]:
    """Time by execution provider, the longest first."""
    return _shares((node.provider for node in table.nodes), node_seconds(table))


def layout_share(table: OperatorTable) -> float:
    """The share of reorders and transposes."""
    return sum(share.share for share in by_operator(table) if share.name in _LAYOUT)


def _shares(names: Iterable[str], seconds: Sequence[float]) -> list[Share]:
    sums: dict[str, float] = {}
    for name, time_s in zip(names, seconds, strict=True):
        sums[name] = sums.get(name, 0.0) + time_s
    total = sum(seconds) or 1.0
    return [Share(name, sums[name], sums[name] / total) for name in sorted(sums, key=lambda name: -sums[name])]


# --- from a profiled node to a layer -------------------------------------------------------------------------


def layers_by_node(proto: onnx.ModelProto, profiled: Sequence[tuple[str, str]]) -> dict[str, str | None]:
    """The layer of each profiled (name, operator), by the node's name; None for what is no layer's work."""
    graph = proto.graph
    made_by = {output: node for node in graph.node for output in node.output}
    named = {node.name: node for node in graph.node if node.name}
    order = {id(node): index for index, node in enumerate(graph.node)}
    whole = _planned(proto)
    found: dict[str, onnx.NodeProto | None] = {}
    for name, op in profiled:
        plain = _SUFFIX.sub("", name).removeprefix("fused ")
        node = made_by.get(plain) or named.get(plain)
        found[name] = node if node is not None and op.removeprefix("Fused") in _LAYERS else None
    taken = {id(node) for node in found.values() if node is not None and node.op_type in _LAYERS}
    layers: dict[str, str | None] = {}
    for name, node in found.items():
        if node is not None and node.op_type not in _LAYERS:
            above = [one for one in _upstream(node, made_by) if id(one) not in taken]
            node = max(above, key=lambda one: order[id(one)], default=None)
        layers[name] = None if node is None else _layer_name(node, whole)
    return layers


def _upstream(node: onnx.NodeProto, made_by: Mapping[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The layers that a node reads, through nodes that are none."""
    found: list[onnx.NodeProto] = []
    waiting, seen = list(node.input), set[str]()
    while waiting:
        value = waiting.pop()
        maker = made_by.get(value)
        if maker is None or value in seen:
            continue
        seen.add(value)
        if maker.op_type in _LAYERS:
            found.append(maker)
        else:
            waiting += maker.input
    return found


def _layer_name(node: onnx.NodeProto, whole: Mapping[str, str]) -> str:
    name = node.name or node.output[0]
    return whole.get(name, name)


def _planned(proto: onnx.ModelProto) -> dict[str, str]:
    """The layer of the plan by the names of its factors' nodes; empty where the file has no plan."""
    text = next((entry.value for entry in proto.metadata_props if entry.key == "rankfold.plan"), None)
    if text is None:
        return {}
    try:
        plan = Plan.model_validate_json(text)
    except (RankfoldError, ValueError):
        return {}  # of another version: the factors then stand for themselves
    factored = {name for name, decision in plan.layers.items() if decision.form != "dense"}
    names = (node.name for node in proto.graph.node if node.op_type in _LAYERS)
    return {name: whole for name in names if (whole := _FACTOR.sub("", name)) in factored and whole != name}
