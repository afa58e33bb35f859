"""Recipes, and what a training run leaves: recipe.toml, metrics.jsonl, train.json."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from .base import FormName, Measure, Part, Positive, Record, Sha256, Solver


class ModelSpec(Part):
    """Which network: a built-in name or `package.module:factory`, and its keyword arguments."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class DataSpec(Part):
    """Which data: `glyphs` (built in), `npz` (a file) or `folder` (train/CLASS/*.jpg and val/CLASS/*.jpg), and how much
    of it is kept apart for validation.

    For `npz` the validation split is the last `validation_share` of the training part, by index; for `folder` that of
    each class, by name, and val/ is the test split; for `glyphs` it is `validation_share` × `train_size` further
    images, in a font family of their own. Images enter the network as (x / 255 - mean) / std, one number a channel or
    one for all. Those of a folder are in colour and cut to `size` × `size`, with `augment = "resized-crop"` at random.
    """

    name: Literal["glyphs", "npz", "folder"] = "glyphs"
    path: str | None = None
    train_size: int = Field(default=7200, gt=0)
    test_size: int = Field(default=3600, gt=0)
    validation_share: float = Field(default=0.2, gt=0, lt=1)
    data_seed: int = 0
    mean: list[float] = Field(default=[0.5], min_length=1)
    std: list[Annotated[float, Field(gt=0)]] = Field(default=[0.25], min_length=1)
    augment: Literal["none", "shift", "flip-shift", "pad-crop-flip", "resized-crop"] = "none"
    size: int = Field(default=224, gt=0)

    @model_validator(mode="after")
    def _path_goes_with_npz(self) -> Self:
        if self.name == "glyphs" and self.path is not None:
            raise ValueError("glyphs are built in and take no path; use name = 'npz'")
        if (self.name == "folder") != (self.augment == "resized-crop") and self.augment != "none":
            raise ValueError("augment = 'resized-crop' is for name = 'folder', and nothing else is; or use 'none'")
        return self


class OptimizerSpec(Part):
    """SGD with Nesterov momentum; exactly one of epochs and steps.

    After the warm-up the rate falls as a cosine, stays, or (`step`) is divided by 10 at each of the `milestones`,
    shares of the steps after the warm-up.
    """

    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    batch_size: int = Field(default=64, gt=0)
    epochs: int | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0)
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: list[Annotated[float, Field(ge=0, le=1)]] = Field(default=[0.5, 0.75])
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    mixed_precision: bool = False

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        return self


class RegularizerSpec(Part):
    """Strengths of the two penalties (design §3) and when they act.

    `low_rank` is τ, `group` is λ, `alpha` the elementwise share. As soon as the network would be exported with
    `hold_macs` (share of the dense MACs), or from `hold_from` (share of the steps) on, the strengths are 0 and
    the ranks and live groups reached, rounded to `tile`, are kept by projection.
    `target_macs`, `target_params` (weights) or `target_latency` (by `table`) are shares of the dense network's: the
    strengths are sought so that no more is left at `hold_from` (60 % of the steps where that is not given).
    In the first `ramp` (share of the steps) after `start_at` the strengths rise from 0. `guard` goes back to the last
    good state, with weaker strengths, where the network collapses or diverges.
    `solver` is how singular values are found (`train.proximal`).
    `table` is a file of `rankfold latency-table show -o`: τ goes by the time that a layer can save, ranks to those that
    are faster than dense.
    `low_rank_factors` and `group_factors` multiply τ and λ of single layers, by name; `least` filters of a layer stay.
    """

    low_rank: float = Field(default=0.0, ge=0)
    group: float = Field(default=0.0, ge=0)
    alpha: float = Field(default=0.0, ge=0, le=1)
    form: Literal["channel", "input-channel", "spatial", "linear"] = "channel"
    every: int = Field(default=10, gt=0)
    solver: Solver = "gram"
    scale: Literal["folded", "raw"] = "folded"
    relative: bool = False
    groups: Literal["filter", "coupled"] = "filter"
    start_at: float = Field(default=0.0, ge=0, le=1)
    ramp: float = Field(default=0.0, ge=0, le=1)
    hold_from: float = Field(default=1.0, ge=0, le=1)
    hold_macs: float | None = Field(default=None, gt=0, le=1)
    target_macs: float | None = Field(default=None, gt=0, le=1)
    target_params: float | None = Field(default=None, gt=0, le=1)
    target_latency: float | None = Field(default=None, gt=0, le=1)
    guard: bool = True
    tile: int = Field(default=1, gt=0)
    energy: float = Field(default=1.0, gt=0, le=1)
    table: str | None = None
    least: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    skip: list[str] = Field(default_factory=list)
    low_rank_factors: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    group_factors: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)


class DistillSpec(Part):
    """How a planned network learns from the dense one it came from (`train --plan`); weight 0 is without.

    loss = (1 − weight) · cross-entropy + weight · temperature² · KL(dense ‖ planned), both softened by the temperature.
    """

    weight: float = Field(default=0.9, ge=0, le=1)
    temperature: Positive = 4.0


class Promise(Part):
    """What a recipe says it reaches, and on what; printed beside what it did reach."""

    metric: Literal["validation_accuracy", "test_accuracy"]
    at_least: float = Field(ge=0, le=1)
    measured_on: str


class Recipe(Record):
    """`recipe.toml`: everything that decides a training run but the seed. Format 1: first version; `distill`,
    `data.size` and `optimizer.milestones` may be missing; `distill` acts where a planned network is trained.
    """

    about: str
    model: ModelSpec
    data: DataSpec = DataSpec()
    optimizer: OptimizerSpec
    regularizer: RegularizerSpec | None = None
    distill: DistillSpec | None = None
    promise: Promise


class LayerSummary(Part):
    """One layer at the end of an epoch, as it would be exported."""

    name: str
    form: FormName
    rank: int
    full_rank: int
    live_groups: int | None
    groups: int | None
    energy: float | None = Field(description="share of the sum of singular values in the kept rank")


class Event(Part):
    """What the guard found and did, in a training or in one layer of it."""

    step: int
    layer: str | None
    what: str

    def line(self) -> str:
        """For people."""
        return f"step {self.step}: " + (f"layer '{self.layer}': " if self.layer is not None else "") + self.what


class EpochRow(Part):
    """One line of metrics.jsonl, also kept in the checkpoint so that a resumed run has them all.

    `strength` is what the strengths given are multiplied with; it and `events` may be missing.
    """

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    epoch_s: float
    proximal_s: float
    penalty: float | None
    layers: list[LayerSummary]
    strength: float | None = None
    events: list[Event] = Field(default_factory=list)


class TargetReached(Part):
    """Shares of the dense network's `of` that were wanted and are left, and the step since which they are held."""

    of: Measure
    wanted: float
    reached: float
    held_from: int | None


class PlannedStart(Part):
    """What a planned network was before it was trained, and the dense one it learned from: validation accuracies."""

    small_sha256: Sha256 = Field(description="the ONNX file that it began as")
    dense_sha256: Sha256 = Field(description="over the dense network's state, which is in the checkpoint")
    small_accuracy: float
    dense_accuracy: float


class TrainRecord(Record):
    """`train.json`: what a finished run reached. Format 1: first version; `start` and `target` may be missing."""

    recipe: Recipe
    seed: int
    threads: int
    data: str
    input_shape: tuple[int, int, int] = Field(description="C, H, W")
    classes: int
    torch_version: str
    device: str
    steps: int
    train_s: float
    proximal_s: float
    parameters: int
    validation_accuracy: float
    validation_indices: tuple[int, int] = Field(description="first and one past last index of the split")
    epochs: list[EpochRow]
    start: PlannedStart | None = Field(default=None, description="where a plan was trained, which is in the checkpoint")
    target: TargetReached | None = Field(default=None, description="where the recipe has hold_macs or a target")
