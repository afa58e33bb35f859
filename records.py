"""Every schema that rankfold writes to disk: the leaf that all folders import and that imports none of them.

Each record carries `"format": 1` and a line of history. Units are in the names. What was not measured is
`None`, never 0. Unknown keys are refused, so that a misspelt one cannot pass for a default.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import InputError
from .files import write_text

FormName = Literal["channel", "input-channel", "spatial", "tucker-2", "linear"]
Positive = Annotated[float, Field(gt=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_MAX_RECORD_BYTES = 1 << 30


class Part(BaseModel):
    """A piece of a record: immutable, closed to unknown keys, and finite numbers only."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Record(Part):
    """A whole file: a format number, and the way to and from disk."""

    format: Literal[1] = 1

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read and validate a JSON record; errors name the file, the key, what was expected and found."""
        try:
            if Path(path).stat().st_size > _MAX_RECORD_BYTES:
                raise InputError(f"{path}: larger than 1 GiB; this is no {cls.__name__} record")
            data = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: expected JSON, found {str(error)[:120]}; make the file again") from error
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InputError(f"{path}: {first_problem(error)}") from error

    def write(self, path: Path | str) -> None:
        """Write as JSON, whole or not at all."""
        write_text(Path(path), self.model_dump_json(indent=1) + "\n")


def first_problem(error: ValidationError) -> str:
    """The first thing a validation found wrong, unknown keys before all, in one line: where, what, found."""
    problems = error.errors(include_url=False)
    # a misspelt key is missing under its right name too: the unknown one says more
    problem = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    where = ".".join(str(key) for key in problem["loc"]) or "top level"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{where}'{more}; remove it or check its spelling"
    found = repr(problem["input"])
    return f"'{where}': {problem['msg']}, found {found[:80]}{more}"


# --- training -----------------------------------------------------------------------------------------------


class ModelSpec(Part):
    """Which network: a built-in name or `package.module:factory`, and its keyword arguments."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class DataSpec(Part):
    """Which data: `glyphs` (built in) or `npz` (a path), and how much of it is kept apart for validation.

    For `npz` the validation split is the last `validation_share` of the training part, by index; for `glyphs`
    it is `validation_share` × `train_size` further images, in a font family of their own. Images enter the
    network as (x / 255 - mean) / std, one number a channel or one for all.
    """

    name: Literal["glyphs", "npz"] = "glyphs"
    path: str | None = None
    train_size: int = Field(default=7200, gt=0)
    test_size: int = Field(default=3600, gt=0)
    validation_share: float = Field(default=0.2, gt=0, lt=1)
    data_seed: int = 0
    mean: list[float] = Field(default=[0.5], min_length=1)
    std: list[Annotated[float, Field(gt=0)]] = Field(default=[0.25], min_length=1)
    augment: Literal["none", "shift", "flip-shift"] = "none"

    @model_validator(mode="after")
    def _path_goes_with_npz(self) -> Self:
        if self.name == "glyphs" and self.path is not None:
            raise ValueError("glyphs are built in and take no path; use name = 'npz'")
        return self


class OptimizerSpec(Part):
    """SGD with Nesterov momentum under a one-cycle or step schedule; exactly one of epochs and steps."""

    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    batch_size: int = Field(default=64, gt=0)
    epochs: int | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0)
    schedule: Literal["cosine", "step", "constant"] = "cosine"
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
    `low_rank_factors` and `group_factors` multiply τ and λ of single layers, by name; `least` filters of a layer stay.
    """

    low_rank: float = Field(default=0.0, ge=0)
    group: float = Field(default=0.0, ge=0)
    alpha: float = Field(default=0.0, ge=0, le=1)
    form: Literal["channel", "input-channel", "spatial", "linear"] = "channel"
    every: int = Field(default=10, gt=0)
    scale: Literal["folded", "raw"] = "folded"
    relative: bool = False
    groups: Literal["filter", "coupled"] = "filter"
    start_at: float = Field(default=0.0, ge=0, le=1)
    hold_from: float = Field(default=1.0, ge=0, le=1)
    hold_macs: float | None = Field(default=None, gt=0, le=1)
    tile: int = Field(default=1, gt=0)
    energy: float = Field(default=1.0, gt=0, le=1)
    least: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    skip: list[str] = Field(default_factory=list)
    low_rank_factors: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    group_factors: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)


class Promise(Part):
    """What a recipe says it reaches, and on what; printed beside what it did reach."""

    metric: Literal["validation_accuracy", "test_accuracy"]
    at_least: float = Field(ge=0, le=1)
    measured_on: str


class Recipe(Record):
    """`recipe.toml`: everything that decides a training run but the seed. Format 1: first version."""

    about: str
    model: ModelSpec
    data: DataSpec = DataSpec()
    optimizer: OptimizerSpec
    regularizer: RegularizerSpec | None = None
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


class EpochRow(Part):
    """One line of metrics.jsonl, also kept in the checkpoint so that a resumed run has them all."""

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


class TrainRecord(Record):
    """`train.json`: what a finished run reached. Format 1: first version."""

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


# --- export -------------------------------------------------------------------------------------------------


class GroupDecision(Part):
    """Channels that live and die together: how many stay, which, and why."""

    channels: int
    kept: list[int]
    members: list[str] = Field(description="layers whose output channels these are")
    reason: str


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
    """What a plan was chosen for, and what it came to: times as shares of the original file's on that device.

    `predicted` is from the latency table, `screened` from the network with these shapes before the plan was frozen,
    `measured` from launch pairs of the files after it; `fastest` is the least that any choice reaches; `drop` is there
    where the metric was limited.
    """

    device: str
    threads: int
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


class Plan(Record):
    """`plan.json`: a decision and a reason for every group and every layer. Format 1: first version; `timing` may be
    missing.
    """

    source_sha256: Sha256 | None = None
    tile: int = Field(gt=0)
    groups: dict[str, GroupDecision] = Field(default_factory=dict)
    layers: dict[str, LayerDecision] = Field(default_factory=dict)
    timing: PlanTiming | None = None


class FrontierPoint(Part):
    """A plan on the way from dense to the smallest: its cost and share of the dense cost, and the damage predicted."""

    share: float
    cost: int = Field(description="MACs, or weights where a file size was asked for")
    layers: int = Field(description="factorised ones")
    damage: float


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


# --- accuracy -----------------------------------------------------------------------------------------------


class Score(Part):
    """One model's metric on one split, with a 95 % Wilson interval; joined to variants by sha256."""

    model_sha256: Sha256
    name: str
    data: str
    split: Literal["validation", "test"]
    metric: str
    n: int = Field(gt=0)
    value: float
    low: float
    high: float
    seed: int | None


class Evaluation(Record):
    """`evaluation.json`. Format 1: first version."""

    scores: list[Score]


class ModelScore(Record):
    """`score.json`: what `evaluate` found for one ONNX file, by labels, by its original, or by a user's command.

    Higher is better. The interval is a 95 % Wilson interval, None where the metric is no share of `n` answers.
    Format 1: first version.
    """

    model_sha256: Sha256
    data: str
    metric: str
    n: int | None
    value: float
    low: float | None
    high: float | None
    reference_sha256: Sha256 | None = Field(description="the original that a model without labels is held against")


# --- devices ------------------------------------------------------------------------------------------------


class Card(Part):
    """A board as a person describes it: identity, how to reach it, what to expect (TOML, never probed)."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
    about: str
    transport: Literal["local"]
    expected_architecture: str | None = None
    tested: str = Field(description="date of the last boot by a person, or 'never'")


class CpuFacts(Part):
    """One logical core's frequency now, in hertz, and its governor; None where the system does not say."""

    core: int
    governor: str | None
    frequency_hz: int | None


class Facts(Part):
    """What a board turned out to be, probed each time (design §6). Format follows the record it is in."""

    # What decides how fast a model runs, in the order in which a difference is named.
    DECISIVE: ClassVar[tuple[str, ...]] = (
        "architecture", "cpu_model", "isa", "logical_cores", "hypervisor", "emulated", "onnxruntime_version", "layout",
        "tile",
    )  # fmt: skip

    architecture: str
    cpu_model: str | None
    isa: list[str] = Field(description="the vector extensions that decide kernels: avx2, avx512f, asimddp, …")
    logical_cores: int
    affinity: list[int] = Field(description="cores this process may run on")
    clusters: list[list[int]] = Field(default_factory=list, description="these, by speed, the slowest first")
    memory_bytes: int | None
    kernel: str
    os: str | None
    hypervisor: bool | None
    python_version: str
    numpy_version: str
    onnxruntime_version: str
    providers: list[str]
    tile: int = Field(gt=0, description="channel multiple that the float32 kernels like")
    layout: Literal["nchwc", "nchw"]
    emulated: bool = False


class Weather(Part):
    """What changes while one measures: stamped before and after."""

    load_1min: float | None
    memory_available_bytes: int | None
    temperatures_c: dict[str, float] = Field(default_factory=dict)
    throttled: str | None = Field(default=None, description="the firmware's throttle flags where it has any")
    cores: list[CpuFacts] = Field(default_factory=list)
    steal_s: float | None = None


# --- measuring ----------------------------------------------------------------------------------------------


class Launch(Part):
    """One fresh process of one variant."""

    pair: int
    warmup_s: list[float]
    session_creation_s: float
    first_run_s: float
    peak_rss_bytes: int | None
    baseline_rss_bytes: int | None = Field(description="resident memory before the session was created")
    providers: list[str]
    nodes_by_provider: dict[str, int]


class Variant(Part):
    """One model in a comparison."""

    name: str
    file: str
    sha256: Sha256
    size_bytes: int
    macs: int | None
    parameters: int | None
    launches: list[Launch]


class Block(Part):
    """Consecutive samples of one variant, seconds since the pair began."""

    variant: str
    start_s: float
    samples_s: list[Positive] = Field(min_length=1)
    cpu_s: float | None
    steal_s: float | None
    involuntary_switches: int | None


class Pair(Part):
    """Baseline and variant, each in a fresh process, both alive, taking turns."""

    baseline: str
    variant: str
    seed: int
    blocks: list[Block]


class Comparison(Part):
    """ratio = baseline time / variant time: 2.0 is twice as fast; 95 % t interval over pairs."""

    baseline: str
    variant: str
    ratio: float
    low: float
    high: float
    pairs: int


class Caution(Part):
    """Something that looks wrong in the measurement, and what to do about it."""

    what: str
    remedy: str


class Context(Part):
    """All that must agree before two benches may be compared."""

    device: str
    facts: Facts
    threads: int
    cores: list[int]
    provider: str
    session_config: dict[str, str]
    input_shapes: dict[str, list[int]]
    inputs_sha256: str | None = Field(default=None, description="of the npz file with the inputs; null for random ones")
    block_runs: int
    dropped_runs: int
    started_at: str = Field(description="ISO 8601, UTC")
    weather_before: Weather
    weather_after: Weather | None


class Change(Part):
    """A model then and now: its speed-ups over the common baseline, and its time now / then with a 95 % interval."""

    variant: str
    same_file: bool
    then: float
    now: float
    time: float
    low: float
    high: float
    pairs: tuple[int, int]


class Changes(Record):
    """What `rankfold compare` found between two benches. Format 1: first version."""

    baseline: str
    changes: list[Change]
    only_then: list[str]
    only_now: list[str]


class Paced(Part):
    """A model on frames that arrive at a fixed rate; a frame that arrives during a run is dropped.

    `responses_s` are from a frame's arrival to its end; the deadline is the next frame's arrival.
    """

    variant: str
    rate_hz: Positive
    samples_s: list[Positive]
    responses_s: list[Positive]
    dropped: int


class Moment(Part):
    """A block of a sustained run: seconds since its beginning, its undisturbed run, and the weather at its end."""

    at_s: float
    run_s: Positive
    weather: Weather


class Sustained(Part):
    """A model that runs without a pause."""

    variant: str
    moments: list[Moment] = Field(min_length=1)


class OperatorTime(Part):
    """A node of the optimised graph: the plan's layer it belongs to, None for none; seconds in each profiled run."""

    name: str
    op: str
    provider: str
    layer: str | None
    samples_s: list[float]


class OperatorTable(Part):
    """Where a model's time goes, by the runtime's own profile; `runs_s` are the whole runs."""

    variant: str
    runs_s: list[Positive] = Field(min_length=1)
    nodes: list[OperatorTime]


class Pilot(Part):
    """Pairs timed to choose the count, and then left out: relative half-widths, wanted and found, by variant."""

    wanted_half_width: float
    pairs: int
    half_widths: dict[str, float]


class Bench(Record):
    """`bench.json`: raw samples first, everything else derived from them.

    Format 1: first version; what came later (`pilot`, `paced`, `sustained`, `operators`, `inputs_sha256`) may be
    missing.
    """

    history: ClassVar[str] = "1: first version"
    context: Context
    variants: list[Variant]
    pairs: list[Pair]
    comparisons: list[Comparison]
    cautions: list[Caution]
    pilot: Pilot | None = None
    paced: list[Paced] = Field(default_factory=list)
    sustained: list[Sustained] = Field(default_factory=list)
    operators: list[OperatorTable] = Field(default_factory=list)
