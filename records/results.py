"""Comparisons of several networks, and rows of docs/results/*.jsonl: one measurement a line."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .base import Finish, FormName, Part, Record, Sha256
from .training import Event


class VariantSpec(Part):
    """One network of a comparison: trained by a recipe with changes, exported dense or compact.

    `trained_by` takes another variant's training instead of its own; `parameters_of` sets the one energy for
    all layers so that the network has at most as many parameters as that variant's.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
    recipe: str | None = None
    changes: list[str] = Field(default_factory=list)
    trained_by: str | None = None
    write: Literal["dense", "compact"] = "dense"
    form: FormName | None = None
    energy: float | None = Field(default=None, gt=0, le=1)
    parameters_of: str | None = None

    @model_validator(mode="after")
    def _one_training(self) -> Self:
        if (self.recipe is None) == (self.trained_by is None):
            raise ValueError("give exactly one of recipe and trained_by")
        return self


class Claim(Part):
    """What a comparison must show, or its command fails. Accuracies are shares, on the test split."""

    dense_accuracy: float = Field(ge=0, le=1, description="the baseline's, at least")
    within: float = Field(ge=0, le=1, description="the compact one's loss against the baseline, at most")
    speedup: float = Field(gt=0, description="lower end of the compact one's interval, above")


class ComparisonSpec(Record):
    """A comparison: networks trained equally long, measured together. Format 1: first version.

    The first variant is the baseline; `compact`, named before anything runs, is the one the answer is about.
    """

    about: str
    compact: str
    claim: Claim | None = None
    variants: list[VariantSpec] = Field(min_length=2)

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError("two variants have the same name")
        own = {variant.name for variant in self.variants if variant.recipe is not None}
        sized = {variant.name for variant in self.variants if variant.parameters_of is None}
        for variant in self.variants:
            if variant.trained_by is not None and variant.trained_by not in own:
                raise ValueError(f"{variant.name}: trained_by names no variant with a recipe: {variant.trained_by}")
            if variant.parameters_of is not None and variant.parameters_of not in sized:
                raise ValueError(f"{variant.name}: parameters_of names no variant: {variant.parameters_of}")
        if self.compact not in names[1:]:
            raise ValueError(f"compact names no variant but the baseline: {self.compact}")
        return self


class Made(Record):
    """`models/NAME.made.json`: what a compared model was made of; anything else makes it again.

    Format 1: first version.
    """

    config_hash: str
    parameters: int | None = Field(description="the most it was allowed to have")


class ResultRow(Record):
    """One network of a comparison, measured: a line of docs/results/*.jsonl. Format 1: first version."""

    comparison: str
    variant: str
    config_hash: str
    seed: int
    validation_accuracy: float | None
    test_accuracy: float
    test_low: float
    test_high: float
    test_n: int
    parameters: int | None
    macs: int | None
    size_bytes: int
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    cpu_model: str | None
    onnxruntime_version: str
    threads: int


class OneShotRow(Record):
    """A trained network compressed without training, scored: a line of docs/results/oneshot.jsonl. Format 1: first."""

    model: str
    method: str
    config_hash: str
    seed: int = Field(description="of the choice of calibration inputs")
    split: Literal["validation", "test"]
    n: int
    wanted: float = Field(description="share of the dense network's MACs that was asked for")
    macs: float = Field(description="share of the dense network's MACs")
    accuracy: float
    dense_accuracy: float


class EvidenceRow(Record):
    """One comparison of files whose true ratio is known: a line of docs/results/evidence.jsonl. Format 1: first."""

    scenario: str
    seed: int
    config_hash: str = Field(description="over the models, the scenario and how it is measured")
    machine: str = Field(description="processor and onnxruntime")
    threads: int
    pairs: int
    ratio: float
    low: float
    high: float
    latency_s: float = Field(description="median of the baseline's samples")
    cautions: list[str] = Field(description="those of the samples: what they say, without the remedy")
    took_s: float
    started_at: str = Field(description="ISO 8601, UTC")


class TuningRow(Record):
    """A compressed network tuned without labels, and fine-tuned with them: a line of docs/results/tuning.jsonl.

    Format 1: first version; rows without `augment` had none.
    """

    model: str
    split: Literal["validation", "test"]
    n: int
    seed: int = Field(description="of the calibration inputs and the order of the batches")
    augment: str = Field(default="none", description="of the images of both")
    macs: float = Field(description="share of the dense network's MACs")
    steps: int
    batch: int
    lr: float
    labelled_lr: float
    dense_accuracy: float
    compressed_accuracy: float
    tuned_accuracy: float | None
    labelled_accuracy: float


class PlannedRow(Record):
    """A planned network trained on, `weight` of the loss being distillation: a line of docs/results/planned.jsonl.

    Format 1: first version; the first rows do not say `weights_sha256`.
    """

    model: str
    weights_sha256: Sha256 | None = Field(default=None, description="of the dense network's file")
    split: Literal["validation", "test"]
    n: int
    seed: int = Field(description="of the calibration inputs and the order of the batches")
    plan_sha256: Sha256 | None = Field(description="None: compressed to `wanted` of the dense network's MACs")
    wanted: float
    macs: float = Field(description="share of the dense network's MACs")
    steps: int
    batch: int
    lr: float
    augment: str
    weight: float
    temperature: float
    dense_accuracy: float
    compressed_accuracy: float
    trained_accuracy: float
    train_s: float


class TrainedRow(Record):
    """A small network of a published one, trained on: a line of docs/results/trained.jsonl. Sizes are shares of the
    published network's, and times are in comparison with it, once measured. Format 1: first version.
    """

    model: str
    network: str = Field(description="how it came about: benchmarks/trained.py")
    config_hash: str
    seed: int
    epochs: float
    weight: float = Field(description="of distillation")
    n: int
    dense_accuracy: float
    start_accuracy: float
    validation_accuracy: float
    test_accuracy: float
    device: str = Field(description="that it learned on")
    train_s: float
    macs: float | None = None
    parameters: float | None = None
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    threads: int | None = None
    machine: str | None = Field(default=None, description="processor and onnxruntime that it was timed on")


class AblationRow(Record):
    """One network of the ablation: a line of docs/results/ablation.jsonl. Times are in comparison with the dense
    network of its seed, once measured. Format 1: first version.
    """

    arm: str = Field(description="what was done to it: benchmarks/arms.py")
    point: str = Field(description="the size that was asked for")
    finish: Finish = Field(description="whether and how it was fine-tuned")
    seed: int
    config_hash: str
    low_rank: float = Field(description="τ")
    group: float = Field(description="λ")
    rate: float | None = Field(description="of fine-tuning")
    epochs: int = Field(description="with those of fine-tuning")
    parameters: int
    macs: int
    validation_accuracy: float
    test_accuracy: float | None = Field(description="None: only tried, on the validation split")
    n: int = Field(description="test images")
    train_s: float
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    threads: int | None = None
    machine: str | None = Field(default=None, description="processor and onnxruntime that it was timed on")


class StabilityRow(Record):
    """One training under a strength of low rank: a line of docs/results/stability.jsonl. Format 1: first version."""

    recipe: str
    way: str = Field(description="what τ acts on: benchmarks/stability.py")
    strength: float = Field(description="τ; 0: dense")
    guard: bool
    config_hash: str = Field(description="over the recipe")
    seed: int
    n: int = Field(description="images in the validation split")
    chance: float = Field(description="accuracy of the most frequent class on them")
    accuracies: list[float] = Field(description="on the validation split, after each epoch that ended")
    ranks: float | None = Field(description="share of the layers' full ranks that is kept at the end")
    smallest: float | None = Field(description="the same of the layer that keeps least")
    events: list[Event] = Field(description="what the guard said")
    diverged: str | None = Field(description="how the training ended, where it did before its time")
    train_s: float


class CostRow(Record):
    """A proximal step beside one of the optimizer: a line of docs/results/cost.jsonl. Format 1: first version."""

    network: str
    way: str = Field(description="benchmarks/cost.py")
    batch: int
    size: int = Field(description="height and width of the images, pixels")
    machine: str = Field(description="processor and torch")
    step_s: float = Field(description="of an optimizer's step, median")
    proximal_s: float = Field(description="of a proximal step, median")
    ratio: float = Field(
        description="proximal over optimizer's step, taken in turns, with its 95 % interval over rounds"
    )
    low: float
    high: float
    rounds: int


class ChoosingRow(Record):
    """One answer of benchmarks/choosing.py: a line of docs/results/choosing.jsonl. Format 1: first version."""

    what: str
    network: str
    threads: int
    config_hash: str = Field(description="over the network, the question and how it is measured")
    seed: int = Field(description="of the calibration inputs and of all that is drawn by chance")
    machine: str = Field(description="processor and onnxruntime")
    figures: dict[str, float]
    note: str = ""
    took_s: float
    started_at: str = Field(description="ISO 8601, UTC")


class PeerTime(Part):
    """A network's time in launch pairs with the dense one: how many times as fast, and what a bare loop says of it."""

    speedup: float
    low: float
    high: float
    p50_s: float = Field(description="geometric mean of the launches' medians")
    p50_low_s: float
    p50_high_s: float
    peak_rss_bytes: int | None
    bare: float
    bare_low: float
    bare_high: float
    pairs: int
    threads: int
    machine: str = Field(description="processor and onnxruntime")


class PeerRow(Record):
    """What a tool made of a network, learned on or not: a line of docs/results/peers.jsonl. Format 1: first version."""

    network: str
    tool: str
    setting: str
    config_hash: str
    quick: bool = Field(description="made and scored on a part of the data, which says nothing of the tool")
    epochs: float
    weight: float | None = Field(description="of distillation; None where nothing was learned")
    precision: Literal["fp32", "int8"] = "fp32"
    failed: str | None = Field(default=None, description="why there is no network")
    validation_accuracy: float | None = None
    validation_n: int | None = None
    test_accuracy: float | None = Field(default=None, description="of what was chosen, once")
    test_low: float | None = None
    test_high: float | None = None
    test_n: int | None = None
    macs: int | None = None
    parameters: int | None = None
    size_bytes: int | None = None
    compress_s: float | None = None
    train_s: float = 0.0
    roughly: float | None = Field(
        default=None, description="its time as a share of the dense one's, in a short contest"
    )
    time: PeerTime | None = None
