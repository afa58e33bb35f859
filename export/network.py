"""A folded network whose layers are to be factorised: what each could be, what that would do, and doing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

from ..errors import InputError
from ..records import LayerDecision, Plan
from .aware import Unweighted, whitened
from .calibration import Samples
from .damage import Effects, Objective, Scored, scored
from .graphs import drop_unused_initializers, is_large, refresh_shapes
from .layers import Layer, layers_of
from .moments import collect
from .passes.factorize import form_of, replace
from .reporting import Report
from .walk import Walk


@dataclass
class Network:
    """A folded model whose layers are to be factorised, with the data to judge by.

    Where channels have been pruned, `truth` is the network before that, and `kept` says which of its channels each
    layer still puts out: factors are fitted to these, so that they make up for what came before them.
    """

    model: ir.Model
    samples: Samples | None
    report: Report
    truth: onnx.ModelProto | None = None
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict)
    original: onnx.ModelProto = field(init=False)

    def __post_init__(self) -> None:
        if is_large(self.model):
            raise InputError("the model is larger than 2 GB; compress takes models that fit one ONNX file")
        self.original = ir.to_proto(self.model)

    @property
    def reference(self) -> onnx.ModelProto:
        """What factors are fitted to and harm is judged against: the network before any channel was pruned."""
        return self.truth or self.original

    def scored(
        self, forms: Sequence[str], tile: int, objective: Objective = "macs", keep: Sequence[str] = ()
    ) -> dict[str, Scored]:
        """Every layer's candidates, and what losses of its output do; layers of `keep` stay dense."""
        walk = None if self.samples is None else Walk(self.original, self.samples)
        found: dict[str, Scored] = {}
        effects = None if walk is None else Effects(walk, sum(layer.macs or 0 for layer in layers_of(self.model)))
        layers = [layer for layer in layers_of(self.model) if not layer.closed and layer.name not in keep]
        for number, layer in enumerate(layers):
            self.report("scoring layers", number, len(layers))
            moments = None if walk is None else collect(layer, walk, walk)
            found[layer.name] = scored(layer, forms, tile, moments, effects, objective)
        return found

    def factorize(self, plan: Plan) -> Plan:
        """Replace the plan's layers in place, one after the other; returns the plan with each layer's loss."""
        layers = {layer.name: layer for layer in layers_of(self.model)}
        unknown = [name for name in plan.layers if name not in layers]
        if unknown:
            raise InputError(f"the plan names layer '{unknown[0]}', which the model does not have; plan it again")
        walks = None
        if self.samples is not None:
            walks = Walk(self.original, self.samples), Walk(self.reference, self.samples)
        wanted = [name for name in layers if name in plan.layers and plan.layers[name].form != "dense"]
        decided = dict(plan.layers)
        for number, name in enumerate(wanted):
            self.report("factorising", number, len(wanted))
            decided[name] = self._factorize_one(layers[name], plan.layers[name], walks)
        drop_unused_initializers(self.model.graph)
        refresh_shapes(self.model)
        return plan.model_copy(update={"layers": decided})

    def _factorize_one(self, layer: Layer, decision: LayerDecision, walks: tuple[Walk, Walk] | None) -> LayerDecision:
        form, bias = form_of(layer, decision), None
        if walks is None:
            judge = Unweighted(layer.kernel)
            factors = judge.factors(form, decision.ranks)
        else:
            now, truth = walks
            now.proto = ir.to_proto(self.model)
            judge = collect(layer, now, truth, self.kept.get(layer.name))
            factors = whitened(layer.kernel, judge).factors(form, decision.ranks)
            if layer.node.op_type != "MatMul":
                bias = judge.bias(factors.to_dense())
        replace(layer, form, factors, bias)
        shapes = [kernel.shape for kernel in factors.kernels]
        macs = None if layer.pixels is None else form.macs_of(shapes, layer.pixels)
        return decision.model_copy(update={"loss": judge.score(factors.to_dense()), "macs": macs})
