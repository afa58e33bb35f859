"""The start of `train --plan`: the small network that a plan made of a dense one, and the dense one to learn from.

Both come from files. The small ONNX file lies beside its plan (`small.plan.json` and `small.onnx`, or `plan.json` and
`compact.onnx` of a run folder). The dense weights are those of a finished run, or of the recipe's model where it loads
published ones. All of it is then in the run's own checkpoint: plan, dense state and what has been learned.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import onnx
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ..errors import InputError
from ..files import sha256_of
from ..records import DistillSpec, ModelSpec, Plan, Recipe, TrainRecord, first_problem
from ..runtime.costs import load as load_onnx
from . import checkpoint
from .batchnorm import settle
from .compact import compact, reshaped
from .data import Dataset
from .models import build
from .trainer import CHECKPOINT, RECORD, Start

_PLAN = ".plan.json"
_EXAMPLES = 8  # images on which the module is held against the file
_SETTLED, _BATCH = 1024, 128  # images, or a few more, over which BatchNorm's statistics are taken anew; at once


def planned(recipe: Recipe) -> Recipe:
    """The recipe as it trains a planned network: distillation is spelt out, and the plan alone decides structure."""
    return recipe.model_copy(update={"regularizer": None, "distill": recipe.distill or DistillSpec()})


def start_of(recipe: Recipe, data: Dataset, plan_file: Path, dense_run: Path | None = None) -> Start:
    """What `trainer.train` starts from. `dense_run` is the finished run that the plan's network came from; without it
    the recipe's model is, which must load its weights.

    Raises InputError where plan, small file, dense network and data do not belong together.
    """
    plan, small_file = Plan.read(plan_file), beside(plan_file)
    small = load_onnx(small_file)
    _require_planned_so(small, plan, small_file, plan_file)
    if dense_run is None:
        dense = _published(recipe.model, data)
    else:
        dense = _trained(recipe, data, dense_run)
        _require_source(plan, plan_file, dense_run / "dense.onnx")
    example = torch.from_numpy(data.inputs(data.train.images[:_EXAMPLES]))
    try:
        student = compact(dense, small, plan, example)
    except InputError as error:
        raise InputError(f"{small_file}: {error}") from error
    some = data.train.images[:: max(1, len(data.train.images) // _SETTLED)]
    settle(student, torch.from_numpy(data.inputs(some)).split(_BATCH))
    return Start(student, dense.eval().requires_grad_(False), plan, sha256_of(small_file), _sha256(dense.state_dict()))


def beside(plan_file: Path) -> Path:
    """The small file that a plan belongs to, by its name."""
    if plan_file.name == "plan.json":
        return plan_file.with_name("compact.onnx")
    if not plan_file.name.endswith(_PLAN):
        raise InputError(f"{plan_file}: expected NAME{_PLAN} beside NAME.onnx, as rankfold compress writes them")
    return plan_file.with_name(f"{plan_file.name.removesuffix(_PLAN)}.onnx")


def modules_of(stored: checkpoint.Checkpoint, model: nn.Module) -> tuple[nn.Module, nn.Module, Plan]:
    """The dense and the planned network in the checkpoint of a planned run, and the plan; `model` is the recipe's."""
    try:
        plan = Plan.model_validate(stored.facts.get("plan"))
    except ValidationError as error:
        raise InputError(f"the checkpoint holds no plan ({first_problem(error)}); train again") from error
    small = reshaped(model, plan, stored.model_state())
    checkpoint.restore(stored, small)
    dense = copy.deepcopy(model)
    checkpoint.load_state(dense, stored.teacher_state())
    return dense.eval(), small.eval(), plan


def _published(spec: ModelSpec, data: Dataset) -> nn.Module:
    """The recipe's model, if two of it are alike: then its weights are loaded, not drawn."""
    with torch.random.fork_rng(devices=()):
        made = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            made.append(build(spec, data.channels, len(data.classes)))
    first, second = (model.state_dict() for model in made)
    drawn = next((name for name, value in first.items() if not torch.equal(value, second[name])), None)
    if drawn is not None:
        raise InputError(
            f"model '{spec.name}' starts with random weights ('{drawn}'), not those that the plan's network came from; "
            "name the run that trained them with --from"
        )
    return made[0]


def _trained(recipe: Recipe, data: Dataset, run_dir: Path) -> nn.Module:
    record = TrainRecord.read(run_dir / RECORD)
    seen, now = record.recipe.data, recipe.data
    for what, then, here in (
        ("images", record.input_shape, data.image_shape),
        ("classes", record.classes, len(data.classes)),
        ("mean and std", (seen.mean, seen.std), (now.mean, now.std)),
    ):
        if then != here:
            raise InputError(f"{run_dir}: learned with {what} {then}, the recipe has {here}; they must agree")
    dense = build(recipe.model, data.channels, len(data.classes))
    try:
        checkpoint.restore(checkpoint.load(run_dir / CHECKPOINT), dense)
    except InputError as error:
        raise InputError(f"{run_dir}: {error}") from error
    return dense


def _require_planned_so(small: onnx.ModelProto, plan: Plan, small_file: Path, plan_file: Path) -> None:
    """The file says by which plan it was made, unless another tool has rewritten it since."""
    said = next((entry.value for entry in small.metadata_props if entry.key == "rankfold.plan"), None)
    try:
        same = said is None or Plan.model_validate_json(said) == plan
    except ValidationError:
        same = False
    if not same:
        raise InputError(f"{small_file} was not made by {plan_file}; make it: rankfold compress --plan {plan_file}")


def _require_source(plan: Plan, plan_file: Path, dense_file: Path) -> None:
    if plan.source_sha256 is not None and dense_file.exists() and sha256_of(dense_file) != plan.source_sha256:
        raise InputError(f"{plan_file} is the plan of another file than {dense_file}; compress that one")


def _sha256(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
