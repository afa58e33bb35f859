"""Random graphs against the generator's books: what was killed is removed, exactly, and again changes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import onnx_ir as ir
import pytest

from rankfold.export.coupling import couple
from rankfold.export.graphs import serialize
from rankfold.export.parity import BATCHES, exact_check, original, with_one_bound
from rankfold.export.passes.canonicalize import canonicalize
from rankfold.export.passes.fold_batchnorm import fold_batchnorm
from rankfold.export.passes.fold_channels import fold_channels

from .random_more import random_graph

COMPLETE_SHARE = 0.95  # of graphs, those from which every removable channel must be removed
DECLINED_SHARE = 0.05  # of nodes, those without a rule
HITS_PER_GRAPH = 50 / 2000  # how often each rule must have been used
RULES = (
    *("plain Conv", "depthwise Conv", "grouped Conv", "plain ConvTranspose", "depthwise ConvTranspose"),
    *("grouped ConvTranspose", "gemm", "matmul", "batchnorm", "elementwise", "pooling", "resize", "expand", "concat"),
    *("split", "slice_", "pad", "gather", "transpose", "reshape", "flatten", "depth_to_space", "space_to_depth"),
    *("reduction", "softmax", "layernorm", "across_channels", "groupnorm"),
)


@dataclass
class Tally:
    """What happened to all graphs."""

    graphs: int = 0
    nodes: int = 0
    killed: int = 0
    incomplete: list[str] = field(default_factory=list)
    inexact: list[str] = field(default_factory=list)
    unstable: list[str] = field(default_factory=list)
    hits: Counter[str] = field(default_factory=Counter)
    declined: Counter[str] = field(default_factory=Counter)

    def add(self, seed: int) -> None:
        made = random_graph(seed)
        graph = ir.from_proto(made.model)
        canonicalize(graph)
        fold_batchnorm(graph)
        coupling = couple(graph.graph)
        self.graphs, self.nodes = self.graphs + 1, self.nodes + len(graph.graph)
        self.hits += coupling.hits
        self.declined += Counter(node.op_type for node in coupling.declined)
        decisions = fold_channels(graph)
        members = {name: set(decision.kept) for decision in decisions.values() for name in decision.members}
        self.killed += sum(map(len, made.dead.values()))
        self.incomplete += [
            f"{seed}: {name} keeps {sorted(dead & members[name])}: {decisions.get(name)}"
            for name, dead in made.dead.items()
            if dead & members[name]
        ][:1]
        once = serialize(graph)
        content = made.model.SerializeToString()
        originals = with_one_bound([original(content, batch, seed) for batch in BATCHES])
        checks = [exact_check(one, once, "fold") for one in originals]
        self.inexact += [f"{seed}: {check}" for check in checks if not check.passed]
        fold_channels(graph)
        self.unstable += [str(seed)] if serialize(graph) != once else []


@pytest.fixture(scope="module")
def tally(counts) -> Tally:
    tally = Tally()
    for seed in range(counts(200, 2000)):
        tally.add(seed)
    return tally


def test_every_removable_channel_goes(tally):
    assert tally.killed > tally.graphs
    assert len(tally.incomplete) <= (1 - COMPLETE_SHARE) * tally.graphs, tally.incomplete


def test_outputs_stay_within_the_bound(tally):
    assert not tally.inexact


def test_folding_twice_changes_nothing(tally):
    assert not tally.unstable


def test_each_rule_is_hit_often_enough(tally):
    assert {rule: tally.hits[rule] for rule in RULES if tally.hits[rule] < HITS_PER_GRAPH * tally.graphs} == {}


def test_declines_are_rare_and_counted_by_rule(tally):
    assert 0 < tally.declined.total() <= DECLINED_SHARE * tally.nodes, tally.declined
    assert set(tally.declined) == {"CumSum"}
