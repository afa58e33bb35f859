"""From a point to its row: the tool is applied, what came of it learns on, both become a file that is scored.

Everything that is made from a module is exported alike: by torch.onnx, then BatchNorm folded and onnxsim, as careful
users of any tool would. A tool that has its own way to a file (`Exporting`) takes that.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, Protocol, runtime_checkable

import onnx
import torch
from torch import Tensor, nn

from ...errors import InputError
from ...export.evaluate import score
from ...export.from_torch import to_onnx
from ...export.shrink import prepare_dense
from ...files import making_folder, replacing_all, sha256_of, write_text
from ...records import PeerRow, Plan, Score, TrainRecord
from ...runtime.costs import count
from ...terminal import progress
from ...train.data.dataset import Split
from ...train.trainer import RECORD, Progress, Start, train
from ..training import Told
from .own import Dense, own
from .points import MODEL, Point
from .registry import tools
from .subjects import SEED, SUBJECTS, Places, Subject
from .tools import FileTool, ModuleTool, Setting, Tool

SECONDS = "seconds.json"
_SAID_EVERY = 10  # steps
Say = Callable[[str, int, int, float], None]


@runtime_checkable
class Exporting(Protocol):
    """A tool that writes its module's file itself."""

    def export(self, module: nn.Module, example: Tensor, setting: Setting, target: Path) -> None:
        """Write `target`."""
        ...


def every_tool(subject: Subject, say: Say) -> dict[str, Tool]:
    """Our own first, then third parties', by name."""

    return {tool.name: tool for tool in (*own(subject, _training(say), progress(partial(_Said, say))), *tools())}


@dataclass(frozen=True)
class _Said:
    """A bar that is shown in another process."""

    say: Say
    what: str

    def show(self, done: int, total: int, left_s: float | None, text: str) -> None:
        """Tell it."""
        self.say(self.what, done, total, left_s or 0.0)


def _training(say: Say) -> Callable[[Progress], None]:
    def learned(now: Progress) -> None:
        if now.step % _SAID_EVERY == 0:
            say("training", now.step, now.steps, now.left_s)

    return learned


def grid_of(tool: Tool, subject: Subject) -> list[Point]:
    """All points of a tool, as it leaves the network; none where it cannot run."""
    if tool.missing is not None:
        return []
    return [Point(setting) for setting in tool.settings(subject.name, subject.places.quick)]


def row_of(point: Point, subject: Subject, say: Say) -> PeerRow:
    """Make the network, where its file is not there, and score it on the validation images."""
    row = PeerRow(
        network=subject.name,
        tool=point.setting.tool,
        setting=point.setting.name,
        config_hash=point.config_hash(subject),
        quick=subject.places.quick,
        epochs=point.epochs,
        weight=point.weight,
    )
    if not point.file(subject).exists():
        try:
            _make(point, subject, say)
        except OSError:
            raise  # of this machine, not of the tool
        except Exception as error:  # noqa: BLE001 (whatever a foreign library raises: its row says so, others go on)
            return row.model_copy(update={"failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]})
    file = point.file(subject)
    kind = precision(file)
    costs = count(_in_float(point, kind, subject))
    found = scored(file, subject, "validation") if subject.is_scored else None
    trained = point.in_float.folder(subject) / RECORD
    return row.model_copy(
        update={
            "precision": kind,
            "validation_accuracy": found and found.value,
            "validation_n": found and found.n,
            "macs": costs.macs,
            "parameters": costs.parameters,
            "size_bytes": file.stat().st_size,
            "compress_s": _seconds(point.beginning, subject) + (_seconds(point, subject) if point.int8 else 0.0),
            "train_s": TrainRecord.read(trained).train_s if trained.exists() else 0.0,
        }
    )


def _in_float(point: Point, kind: str, subject: Subject) -> Path:
    """The network before int8, which changes neither MACs nor how many numbers there are."""
    if kind == "int8" and point.int8 is None:
        return Point(Dense(subject).settings(subject.name, subject.places.quick)[0]).file(subject)
    return point.in_float.file(subject)


def _seconds(point: Point, subject: Subject) -> float:
    """That the tool took."""
    return json.loads((point.folder(subject) / SECONDS).read_text())["compress_s"]


def precision(file: Path) -> Literal["fp32", "int8"]:
    """By its operators."""
    found = {node.op_type for node in onnx.load(file).graph.node}
    return "int8" if found & {"QuantizeLinear", "QLinearConv", "DynamicQuantizeLinear"} else "fp32"


def scored(file: Path, subject: Subject, split: Literal["validation", "test"]) -> Score:
    """Top-1 accuracy, with its interval."""
    part: Split = getattr(subject.data, split)
    inputs = subject.data.inputs(part.images)
    return score(file, inputs, part.labels, data=subject.data.name, split=split, seed=SEED, name=subject.name)


# --- the ways to a file -------------------------------------------------------------------------------------


def _make(point: Point, subject: Subject, say: Say) -> None:
    known = every_tool(subject, say)
    if point.int8 is not None:
        _write_anew(known[point.int8.tool], point.int8, point.in_float.file(subject), point, subject)
    elif point.weight is None:
        _write_anew(known[point.setting.tool], point.setting, subject.source(), point, subject)
    else:
        _learn(known[point.setting.tool], point, point.weight, subject, say)


def _write_anew(tool: Tool, setting: Setting, source: Path, point: Point, subject: Subject) -> None:
    """The point's folder, of `source` or of the dense module, with the seconds that it took."""
    with making_folder(point.folder(subject)) as folder:
        target, began = folder / MODEL, time.perf_counter()
        if isinstance(tool, FileTool):
            tool.apply_file(source, target, setting, subject.data)
        else:
            _export(tool, _applied(tool, setting, subject), setting, subject, target)
        seconds = {"compress_s": time.perf_counter() - began}
        write_text(folder / SECONDS, json.dumps(seconds))


def _applied(tool: ModuleTool, setting: Setting, subject: Subject) -> nn.Module:
    torch.manual_seed(SEED)
    return tool.apply(copy.deepcopy(subject.dense()).eval(), subject.example, setting, subject.data).eval()


def _learn(tool: Tool, point: Point, weight: float, subject: Subject, say: Say) -> None:
    """Train what the tool makes of the dense network, and write the file; a training that was killed goes on."""
    if not isinstance(tool, ModuleTool):
        raise InputError(f"{tool.name} takes files, which learn nothing here")
    folder, student = point.folder(subject), _applied(tool, point.setting, subject)
    plain = copy.deepcopy(student)  # training changes the memory layout, which the exporter would write down
    began = sha256_of(point.beginning.file(subject))
    recipe = subject.learning(point.epochs, weight)
    start = Start(student, subject.teacher(), Plan(tile=1), began, subject.sha256())
    folder.mkdir(parents=True, exist_ok=True)
    train(recipe, subject.for_training, folder, seed=SEED, start=start, resume=True, on_progress=_training(say))
    plain.load_state_dict(student.state_dict())
    with replacing_all(folder, [MODEL]) as scratch:
        _export(tool, plain, point.setting, subject, scratch / MODEL)


def _export(tool: ModuleTool, module: nn.Module, setting: Setting, subject: Subject, target: Path) -> None:
    if isinstance(tool, Exporting):
        tool.export(module, subject.example, setting, target)
    else:
        exported(module, subject.example, target)


def exported(module: nn.Module, example: Tensor, target: Path) -> None:
    """Write `target` as every module is exported here; `example` is n×…, float32."""
    with TemporaryDirectory(prefix="rankfold-") as folder:
        whole = Path(folder) / "whole.onnx"
        to_onnx(module, example, whole)
        prepare_dense(whole, target)


# --- in a process of its own --------------------------------------------------------------------------------


@cache
def subject_of(places: Places, name: str) -> Subject:
    """One a process: its data is read once."""
    return SUBJECTS[name](places)


def in_worker(places: Places, name: str, point: Point, told: Told) -> PeerRow:
    """`row_of`, one thread, with progress put into `told`."""
    torch.set_num_threads(1)
    whose = f"{name}: {point.setting.tool}, {point.setting.name}"

    def say(what: str, done: int, total: int, left_s: float) -> None:
        told.put((whose, done, total, left_s, what))

    say("", 0, 1, 0.0)
    row = row_of(point, subject_of(places, name), say)
    say("done", 1, 1, 0.0)
    return row
