"""What becomes of a network: plan.json, parity.json, frontier.json, and what lossy steps did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from .base import CostKind, FormName, Part, Record, Sha256


class GroupDecision(Part):
    """Channels that live and die together: how many stay, which, and why."""

    channels: int
    kept: list[int]
    members: list[str] = Field(description="layers whose output channels these are")
    reason: str


def kept_by_layer(pruned: Mapping[str, GroupDecision]) -> dict[str, list[int]]:
    """The output channels that each layer of these groups keeps, where it loses any."""
    return {
        name: list(group.kept)
        for group in pruned.values()
        if len(group.kept) < group.channels
        for name in group.members
    }


class LayerDecision(Part):
    """What becomes of one layer; `predicted` and `measured` are latency ratios to dense, once known."""

    form: FormName | Literal["dense"]
    ranks: list[int] = Field(default_factory=list)
    full_rank: int | None = None
    energy: float | None = Field(default=None, description="share of the sum of singular values kept")
    loss: float | None = Field(default=None, description="share lost of the layer's output variance, or of its norm²")
    reason: str
    macs_dense: int | None = None
    macs: int | None = None
    predicted: float | None = None
    measured: float | None = None


class LayerTime(Part):
    """A row of the latency table: layers that are alike, their share of all layers' time, and one way to write them."""

    layers: list[str]
    share: float
    form: FormName | Literal["dense"]
    ranks: list[int]
    ratio: float = Field(description="time / the same layer dense")


class LayerTable(Record):
    """What the latency table says of one file's layers, slowest first, each way's ranks by time. Format 1: first
    version.
    """

    device: str
    threads: int
    rows: list[LayerTime]


class Drop(Part):
    """What a compressed network loses of a metric, on `n` inputs that it was not fitted to: `value` is a share of them
    (a point is 0.01), `error` its standard error.
    """

    metric: Literal["top-1", "agreement"]
    n: int
    value: float
    error: float

    @property
    def said(self) -> str:
        """In words."""
        what = "top-1" if self.metric == "top-1" else "agreement with the original"
        lost = f"{100 * abs(self.value):.2f} points {'less' if self.value >= 0 else 'more'}"
        return f"{what} {lost} (± {196 * self.error:.2f}) on {self.n} inputs that it was not fitted to"


class PlanTiming(Part):
    """What a plan was chosen for, and what it came to: times as shares of the original file's on that device; where
    `cost` says so, instructions on an emulated one, a proxy.

    `predicted` is from the latency table, `screened` from the network with these shapes before the plan was frozen,
    `measured` from launch pairs of the files after it; `fastest` is the least that any choice reaches; `drop` is there
    where the metric was limited. Of int8, both files are meant as static int8 writes them.
    """

    device: str
    threads: int
    cost: CostKind = "time"
    precision: Literal["fp32", "int8"] = "fp32"
    budget: float | None = None
    rewrites: list[str] = Field(default_factory=list, description="exact ones that this device runs faster")
    fastest: float
    predicted: float
    screened: float
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = ""
    drop: Drop | None = None


class TriedRanges(Part):
    """One way to set int8 ranges, and the outputs' squared error over their variance with it."""

    method: str
    equalized: bool = False
    error: float


class Int8Timing(Part):
    """Times of the file with all layers in int8, and of the one with some in float for speed, as shares of the float
    file's on that device.
    """

    device: str
    threads: int
    int8: float
    mixed: float | None = None


class Quantized(Part):
    """How a file became int8: the method that gave the ranges, from `n_ranges` inputs, and those tried.

    They were judged on as many other inputs where `held_apart`, else on the same. `equalized` are layers that share
    their scales with the next one, `floats` those that stayed float; the plan's layers say why.
    """

    method: str
    equalized: list[str] = Field(default_factory=list)
    floats: list[str] = Field(default_factory=list)
    weight_bits: Literal[7, 8]
    n_ranges: int
    held_apart: bool
    tried: list[TriedRanges] = Field(min_length=1)
    timing: Int8Timing | None = None


class Plan(Record):
    """`plan.json`: a decision and a reason for every group and every layer. Format 1: first version; `timing` and its
    `cost`, and `quantized`, may be missing.
    """

    source_sha256: Sha256 | None = None
    tile: int = Field(gt=0)
    groups: dict[str, GroupDecision] = Field(default_factory=dict)
    layers: dict[str, LayerDecision] = Field(default_factory=dict)
    timing: PlanTiming | None = None
    quantized: Quantized | None = None


class FrontierPoint(Part):
    """A plan on the way from dense to the smallest: its cost and share of the dense cost, and the damage predicted."""

    share: float
    cost: int = Field(description="MACs, or weights where a file size was asked for")
    layers: int = Field(description="factorised ones")
    damage: float


class RulePoint(Part):
    """A network on a curve: its share of the original's time, and what it does: the outputs' squared error over their
    variance (predicted where there was no data), and what it loses of the metric, a share of the inputs.
    """

    time: float
    layers: int = Field(description="factorised ones")
    damage: float
    drop: float | None = None


class RuleCurve(Part):
    """Networks that one rule chooses, from dense to the least: 'latency', 'macs', or 'energy' with a form."""

    rule: str
    points: list[RulePoint]


class Frontier(Record):
    """`*.frontier.json`: harm against time on a device, by the rules one may choose by. Format 1: first version.

    `n` inputs judged the networks, which were fitted to others; 0 where there was no data.
    """

    source_sha256: Sha256 | None = None
    device: str
    threads: int
    n: int
    metric: Literal["top-1", "agreement", "damage"]
    curves: list[RuleCurve]


class Damage(Part):
    """What lossy steps did to the outputs on calibration data.

    `error` is the squared error relative to the outputs' variance; `agreement` the share of inputs whose top class
    stayed, None where the outputs are no class scores; the accuracies are None without labels.
    """

    data: str
    n: int
    error: float
    agreement: float | None = None
    top1_before: float | None = None
    top1_after: float | None = None


class Compressed(Record):
    """What a compression came to: its plan, the frontier where it was asked for. Format 1: first version."""

    plan: Plan
    frontier: list[FrontierPoint] = Field(default_factory=list)
    curves: Frontier | None = None
    damage: Damage | None = None


class ParityCheck(Part):
    """One comparison of outputs. `relative` is max|Δ| / max|reference|; an exact rewrite has a bound."""

    what: str
    batch: int
    relative: float
    absolute: float
    bound: float | None = Field(description="None for a lossy step, whose error is only reported")
    passed: bool


class Parity(Record):
    """`parity.json`: never empty; `damage` where a step was lossy and there was data. Format 1: first version."""

    exporter: str | None = None
    checks: list[ParityCheck] = Field(min_length=1)
    damage: Damage | None = None


class Tuned(Record):
    """`tune.json`: what tuning a small model on its original came to, on held-out inputs. Format 1: first version."""

    source_sha256: Sha256
    teacher_sha256: Sha256
    data: str
    learned_from: int
    held_out: int
    steps: int
    batch: int
    learning_rate: float
    seed: int
    augment: str
    best_step: int
    error_before: float
    error_after: float
    agreement_before: float | None
    agreement_after: float | None
