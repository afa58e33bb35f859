"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from .. import files
from ..errors import InputError
from ..records import DistillSpec, EpochRow, LayerSummary, OptimizerSpec, Plan, PlannedStart, Recipe, TrainRecord
from . import checkpoint, processes
from .data import Dataset, Split
from .denormals import flushed_denormals
from .distill import distilled
from .guard import Guard, ill_layer
from .models import build
from .prescribed import guard_of, regularizer_of
from .proximal import DivergedError
from .regularizer import CompressionAware

CHECKPOINT = "checkpoint.safetensors"
RECORD = "train.json"
METRICS = "metrics.jsonl"
CHECKPOINT_EVERY_S = 60.0
EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Progress:
    """What a progress line shows: step of steps, the running loss, seconds left at the present pace."""

    step: int
    steps: int
    loss: float
    left_s: float
    row: EpochRow | None = None


@dataclass(frozen=True)
class Start:
    """A planned network to train instead of the recipe's (`planned.start_of`), and the dense one it learns from."""

    student: nn.Module
    teacher: nn.Module
    plan: Plan
    small_sha256: str
    dense_sha256: str


@dataclass
class Sums:
    """Running sums over the epoch under way; they are part of the checkpoint."""

    loss: float = 0.0
    correct: int = 0
    seen: int = 0
    epoch_s: float = 0.0
    proximal_s: float = 0.0


@dataclass
class Run:
    """Where a run stands: all of it goes into the checkpoint."""

    step: int = 0
    history: list[EpochRow] = field(default_factory=list)
    sums: Sums = field(default_factory=Sums)
    start: PlannedStart | None = None

    def facts(self, recipe: Recipe, seed: int, plan: Plan | None) -> dict[str, Any]:
        """The JSON part of a checkpoint."""
        return {
            "recipe": recipe.model_dump(mode="json"),
            "seed": seed,
            "plan": plan and plan.model_dump(mode="json"),
            "start": self.start and self.start.model_dump(mode="json"),
            "step": self.step,
            "history": [row.model_dump(mode="json") for row in self.history],
            "sums": asdict(self.sums),
        }


@flushed_denormals()  # the momentum of zeroed filters decays into denormals: 10 times slower
def train(
    recipe: Recipe,
    data: Dataset,
    run_dir: Path,
    *,
    seed: int = 0,
    start: Start | None = None,
    threads: int = 1,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> TrainRecord:
    """Train as `recipe` says; leaves checkpoint.safetensors, metrics.jsonl and (last) train.json in `run_dir`.

    With `start` its small network is trained, in place, on labels and on what its dense one puts out.
    With the same recipe, data, seed, start, threads and torch, the weights are the same bytes on a CPU, however
    often the run was killed and resumed. Several processes (`processes.joined`) take each batch in equal parts; the
    first of them writes the files.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    workers, own = processes.count(), processes.own()
    spec = recipe.optimizer
    per_epoch = math.ceil(len(data.train) / spec.batch_size)
    steps = spec.steps if spec.steps is not None else (spec.epochs or 0) * per_epoch
    if len(data.train) < 2 or 0 < len(data.train) % spec.batch_size < 2 * workers:
        raise InputError(f"batch size {spec.batch_size} leaves a batch of one image, which BatchNorm cannot take")

    model = start.student if start is not None else build(recipe.model, data.channels, len(data.classes))
    model = model.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(
        _parameter_groups(model, spec.weight_decay),
        lr=spec.lr,
        momentum=spec.momentum,
        nesterov=spec.momentum > 0,
    )
    scaler = torch.amp.GradScaler(enabled=spec.mixed_precision and device.type == "cuda")
    regularizer = regularizer_of(recipe, model, optimizer, steps, torch.zeros(2, *data.image_shape, device=device))
    guard = guard_of(recipe, regularizer, data, steps)
    teacher = None if start is None else start.teacher.eval().to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    distill = recipe.distill or DistillSpec()
    run = Run()

    path = run_dir / CHECKPOINT
    if resume and path.exists():
        stored = checkpoint.load(path)
        _refuse_another_run(stored.facts, recipe, seed, start, path)
        checkpoint.restore(stored, model, optimizer)
        scaler.load_state_dict(stored.facts["scaler"])
        if regularizer is not None:
            regularizer.load_state_dict(stored.facts["regularizer"])
        if guard is not None and stored.facts.get("guard") is not None:
            guard.load_state_dict(stored.facts["guard"], stored.good_state())
        run.step, run.sums = stored.facts["step"], Sums(**stored.facts["sums"])
        run.history = [EpochRow.model_validate(row) for row in stored.facts["history"]]
        run.start = start and PlannedStart.model_validate(stored.facts["start"])

    learner = DistributedDataParallel(model) if workers > 1 else model
    if own == 0:
        _clear(run_dir, resume=resume)
    if start is not None and run.start is None:
        run.start = _began(start, data, device)

    def save() -> None:
        facts = run.facts(recipe, seed, start and start.plan) | {"scaler": scaler.state_dict()}
        facts["regularizer"] = regularizer.state_dict() if regularizer is not None else None
        facts["guard"] = guard.state_dict() if guard is not None else None
        checkpoint.save(path, model, optimizer, facts, teacher, guard.good if guard is not None else None)
        files.write_text(run_dir / METRICS, "".join(row.model_dump_json() + "\n" for row in run.history))

    feed = data.training(spec.batch_size, recipe.data.augment, seed, range(run.step, steps), device, (own, workers))
    began, first_step, saved = time.perf_counter(), run.step, time.monotonic()
    model.train()
    while run.step < steps:
        started = time.perf_counter()
        batch, labels = next(feed)
        together = min(spec.batch_size, len(data.train) - run.step % per_epoch * spec.batch_size)  # of all processes
        batch = batch.contiguous(memory_format=torch.channels_last)

        for group in optimizer.param_groups:
            group["lr"] = learning_rate(spec, run.step, steps)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, enabled=scaler.is_enabled()):
            logits = learner(batch)
            loss = of_labels = F.cross_entropy(logits, labels, label_smoothing=spec.label_smoothing)
            if teacher is not None and distill.weight:
                with torch.no_grad():
                    wanted = teacher(batch)
                loss = distilled(loss, logits, wanted, distill.weight, distill.temperature)
        scaler.scale(loss * (len(labels) * workers / together)).backward()  # the processes' mean is the batch's
        right = (logits.argmax(1) == labels).sum()
        means = torch.stack([loss.detach(), of_labels.detach()]).double()
        found = torch.cat([means * len(labels), right.double()[None]])
        loss_sum, label_loss_sum, correct = processes.total(*found.tolist())  # the one wait for a device
        finite = math.isfinite(loss_sum)
        if finite:
            scaler.step(optimizer)
            scaler.update()
        else:
            _go_back(guard, f"the loss is {loss_sum} at step {run.step}: {_ill(model, batch)}")

        before_proximal = time.perf_counter()
        run.step += 1
        if guard is not None and finite:
            guard.step(label_loss_sum / together)
        elif regularizer is not None and finite:
            regularizer.step()
        if regularizer is not None and run.step == steps:
            regularizer.finish()
        run.sums.proximal_s += time.perf_counter() - before_proximal
        if finite:
            run.sums.loss += loss_sum
            run.sums.correct += round(correct)
            run.sums.seen += together
        run.sums.epoch_s += time.perf_counter() - started

        row = None
        if run.step % per_epoch == 0 or run.step == steps:
            row = _close_epoch(run, model, data, device, regularizer, learning_rate(spec, run.step - 1, steps))
        if own == 0 and (row is not None or time.monotonic() - saved > checkpoint_every_s):
            save()
            saved = time.monotonic()
        pace = (time.perf_counter() - began) / (run.step - first_step)
        if own == 0:
            on_progress(Progress(run.step, steps, loss_sum / together, (steps - run.step) * pace, row))

    last = run.history[-1]
    record = TrainRecord(
        recipe=recipe,
        seed=seed,
        threads=threads,
        data=data.name,
        input_shape=data.image_shape,
        classes=len(data.classes),
        torch_version=torch.__version__,
        device=device.type,
        steps=steps,
        train_s=sum(row.epoch_s for row in run.history),
        proximal_s=sum(row.proximal_s for row in run.history),
        parameters=sum(p.numel() for p in model.parameters()),
        validation_accuracy=last.validation_accuracy,
        validation_indices=(data.validation.first, data.validation.first + len(data.validation)),
        epochs=run.history,
        start=run.start,
        target=regularizer.reached() if regularizer is not None else None,
    )
    if own == 0:
        record.write(run_dir / RECORD)
    return record


def learning_rate(spec: OptimizerSpec, step: int, steps: int) -> float:
    """Linear warm-up over `warmup_share` of the steps, then cosine to 0, ÷10 at each milestone, or constant."""
    warmup = spec.warmup_share * steps
    if step < warmup:
        return spec.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1.0, steps - warmup)
    if spec.schedule == "cosine":
        return spec.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if spec.schedule == "step":
        return spec.lr * 0.1 ** sum(progress >= milestone for milestone in spec.milestones)
    return spec.lr


@torch.no_grad()
def evaluate(model: nn.Module, data: Dataset, split: Split, device: torch.device) -> tuple[float, float]:
    """(mean cross-entropy, top-1 accuracy) of `model` on a split, in evaluation mode."""
    was_training = model.training
    model.eval()
    loss, correct = 0.0, 0
    for images, labels in data.batches(split, EVALUATION_BATCH, device):
        logits = model(images.contiguous(memory_format=torch.channels_last))
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(1) == labels).sum())
    model.train(was_training)
    return loss / len(split), correct / len(split)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for kernels only: BatchNorm's γ and β and the biases go without."""
    kernels = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _go_back(guard: Guard | None, why: str) -> None:
    if guard is None:
        raise DivergedError(f"{why}; lower the learning rate")
    guard.go_back(why)


def _ill(model: nn.Module, batch: Tensor) -> str:
    layer = ill_layer(model, batch)
    return f"layer '{layer}' is the first to put out NaN" if layer is not None else "all layers put out finite numbers"


def _clear(run_dir: Path, *, resume: bool) -> None:
    """A run that is under way does not look done, and one that begins anew has no checkpoint."""
    path = run_dir / CHECKPOINT
    files.require_writable(path)
    files.remove_unfinished(run_dir)
    (run_dir / RECORD).unlink(missing_ok=True)
    if not resume:
        path.unlink(missing_ok=True)


def belongs(facts: dict[str, Any], recipe: Recipe, seed: int) -> bool:
    """Whether a checkpoint's facts are of this very recipe and seed."""
    try:
        recorded = Recipe.model_validate(facts["recipe"])  # of a time when some keys were not there yet, perhaps
    except ValidationError:
        return False
    return recorded == recipe and facts["seed"] == seed


def _refuse_another_run(facts: dict[str, Any], recipe: Recipe, seed: int, start: Start | None, path: Path) -> None:
    if not belongs(facts, recipe, seed):
        raise InputError(f"{path} is of another recipe or seed; choose another --out, or leave out --resume")
    plan, began = facts.get("plan"), facts.get("start")
    then = began and (plan, began["small_sha256"], began["dense_sha256"])
    now = start and (start.plan.model_dump(mode="json"), start.small_sha256, start.dense_sha256)
    if then != now:
        raise InputError(
            f"{path} is of another plan or dense network; choose another --out, or leave out --resume"
            if then and now
            else f"{path} was begun with{'' if then else 'out'} --plan; resume it so, or choose another --out"
        )


def _began(start: Start, data: Dataset, device: torch.device) -> PlannedStart:
    small, dense = (evaluate(model, data, data.validation, device)[1] for model in (start.student, start.teacher))
    return PlannedStart(
        small_sha256=start.small_sha256,
        dense_sha256=start.dense_sha256,
        small_accuracy=small,
        dense_accuracy=dense,
    )


def _close_epoch(
    run: Run,
    model: nn.Module,
    data: Dataset,
    device: torch.device,
    regularizer: CompressionAware | None,
    rate: float,
) -> EpochRow:
    processes.spread(model.buffers())  # each process has BatchNorm statistics of its own batches
    validation_loss, validation_accuracy = evaluate(model, data, data.validation, device)
    last = run.history[-1].step if run.history else 0
    layers: list[LayerSummary] = regularizer.summary() if regularizer is not None else []
    row = EpochRow(
        epoch=len(run.history) + 1,
        step=run.step,
        train_loss=run.sums.loss / max(1, run.sums.seen),
        train_accuracy=run.sums.correct / max(1, run.sums.seen),
        validation_loss=validation_loss,
        validation_accuracy=validation_accuracy,
        learning_rate=rate,
        epoch_s=run.sums.epoch_s,
        proximal_s=run.sums.proximal_s,
        penalty=regularizer.penalty() if regularizer is not None else None,
        layers=layers,
        strength=regularizer.strength if regularizer is not None else None,
        events=[event for event in regularizer.events if event.step > last] if regularizer is not None else [],
    )
    run.history.append(row)
    run.sums = Sums()
    return row
