"""What is in an ONNX file, for a person who has to make it faster: `rankfold model`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from ..records import GroupDecision
from ..runtime import costs
from ..runtime.inputs import Given, graph_inputs, input_shapes
from .decompose import numerical_rank, rank_by_energy, singular_values
from .fastpaths import Miss, misses
from .fold import tidy
from .forms import resolve
from .graphs import array, load
from .layers import Layer, layers_of
from .passes.flush_denormals import count_denormals
from .passes.fold_batchnorm import fold_batchnorm
from .passes.fold_channels import fold_channels

_SHARE = 0.9  # of Σσ²: how low a rank a layer would bear, at a glance
_LARGEST_MATRIX = 1 << 24  # an SVD of more numbers takes minutes; its spectrum is left out


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a layer's matrix (the channel form's, BatchNorm folded), summed up."""

    rank: int
    full_rank: int
    rank_90: int


@dataclass(frozen=True)
class LayerRow:
    """One layer: its weight's shape, its cost for one image (None: shapes unknown), its spectrum if it has one."""

    name: str
    operator: str
    shape: list[int]
    macs: int | None
    parameters: int
    spectrum: Spectrum | None


@dataclass(frozen=True)
class Described:
    """A whole file. `groups` holds what folding would do, with the reasons."""

    inputs: dict[str, str]
    outputs: dict[str, str]
    opset: int
    ir_version: int
    nodes: dict[str, int]
    macs: int | None
    parameters: int
    denormals: int
    layers: list[LayerRow]
    groups: dict[str, GroupDecision]
    misses: list[Miss]


def describe(path: Path, *, layout: str, tile: int, given: Given | None = None) -> Described:
    """Read a file and say what is in it; `layout` and `tile` are the device's. Raises InputError."""
    model = load(path)
    said = given or Given()
    opset, version = model.opset_imports.get("", 0), model.ir_version
    nodes = _operators(model)
    tidy(model)
    fixed = _fixed(ir.to_proto(model), said)
    counted = costs.count(fixed)
    denormals = sum(count_denormals(value) for value in model.graph.initializers.values())
    found = misses(model.graph, layout, tile)
    fold_batchnorm(model)
    rows = [_row(layer, counted) for layer in layers_of(model)]
    return Described(
        inputs={value.name: _type(value) for value in graph_inputs(fixed)},
        outputs={value.name: _type(value) for value in fixed.graph.output},
        opset=opset,
        ir_version=version,
        nodes=nodes,
        macs=counted.macs,
        parameters=counted.parameters,
        denormals=denormals,
        layers=rows,
        groups=fold_channels(model),
        misses=found,
    )


def described_json(path: Path, *, layout: str, tile: int, given: Given | None = None) -> str:
    """`describe` as JSON, for another process or a script."""
    found = asdict(describe(path, layout=layout, tile=tile, given=given))
    found["groups"] = {name: decision.model_dump() for name, decision in found["groups"].items()}
    return json.dumps(found, indent=1)


def _operators(model: ir.Model) -> dict[str, int]:
    names = [f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph]
    return {name: names.count(name) for name in sorted(set(names))}


def _row(layer: Layer, counted: costs.Costs) -> LayerRow:
    weight = array(layer.node.inputs[1])
    assert weight is not None, f"layer {layer.name!r} has no constant weight"
    cost = counted.layers.get(layer.name)
    return LayerRow(
        name=layer.name,
        operator=layer.node.op_type,
        shape=list(weight.shape),
        macs=None if cost is None else cost.macs,
        parameters=weight.size if cost is None else cost.parameters,
        spectrum=_spectrum(layer),
    )


def _spectrum(layer: Layer) -> Spectrum | None:
    if layer.obstacle is not None or not 0 < layer.kernel.size <= _LARGEST_MATRIX:
        return None
    form = resolve("channel", layer.shape)
    values = singular_values(layer.kernel, form)
    return Spectrum(
        rank=numerical_rank(values, form.matricize(layer.kernel).shape),
        full_rank=len(values),
        rank_90=rank_by_energy(values, _SHARE, power=2) if values.any() else 0,
    )


def _fixed(proto: onnx.ModelProto, given: Given) -> onnx.ModelProto:
    """The graph with the sizes that the user gave; what nobody gave stays open, and so do its MACs."""
    shapes: Mapping[str, list[int]] = input_shapes(proto, 1, given.shapes) if given.shapes else {}
    for value in graph_inputs(proto):
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            dim.dim_value = size
    return proto


def _type(value: onnx.ValueInfoProto) -> str:
    """`float32 batch×3×224×224`, as far as the file says."""
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type":
        return value.type.WhichOneof("value") or "unknown"
    kinds = onnx.TensorProto.DataType
    kind = kinds.Name(tensor.elem_type).lower() if tensor.elem_type in kinds.values() else "unknown"
    sizes = [str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim]
    return f"{_NUMPY_NAMES.get(kind, kind)} {'×'.join(sizes)}".strip()


_NUMPY_NAMES = {"float": "float32", "double": "float64"}
