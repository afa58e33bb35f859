"""What a tool is to this comparison: the settings of its grid, and how each of them makes a network smaller.

Two kinds. A `ModuleTool` takes a torch module and gives a smaller one, which learns on. A `FileTool` takes an ONNX file
and writes another; it has no epochs. Each file of adapters ends with `TOOLS`, a sequence of them; `registry.py` names
the files. An adapter imports its library inside of its functions: `missing` says why it cannot run here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...train.data import Dataset


@dataclass(frozen=True)
class Setting:
    """One point of a tool's grid: the tool's name and its own, as tables show them, and arguments that JSON can hold.

    Row, file and training belong to network, tool, name and arguments: other arguments are another point. `is_alone`:
    times are measured while it is made, so nothing else may run.
    """

    tool: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    is_alone: bool = False


class Described(Protocol):
    """What both kinds say of themselves."""

    @property
    def name(self) -> str:
        """In tables: "Torch-Pruning, magnitude"."""
        ...

    @property
    def lines(self) -> int:
        """Lines a user writes for it, without the imports."""
        ...

    @property
    def example(self) -> str:
        """Where the library's own documentation shows this use, and what reproduces it."""
        ...

    @property
    def missing(self) -> str | None:
        """Why it cannot run here, "torch-pruning is not installed"; None where it can."""
        ...

    def settings(self, network: str, quick: bool) -> Sequence[Setting]:
        """The grid for "resnet20", "dec3" or "mobilenetv2", the same at every call; a few points if `quick`."""
        ...


@runtime_checkable
class ModuleTool(Described, Protocol):
    """A tool for torch modules."""

    def apply(self, model: nn.Module, example: Tensor, setting: Setting, data: Dataset) -> nn.Module:
        """A smaller module, of `model` or anew; `model` is a copy of its own, on the CPU, in evaluation mode.

        `example` is float32 2×C×H×W. What is learned from is among `data.train`, never the other splits. Whatever is
        drawn by chance is drawn from a seed: a process that trains it on makes the module again by the same call.
        Raises CheckFailed, in a line, where this setting gives no network.
        """
        ...


@runtime_checkable
class FileTool(Described, Protocol):
    """A tool for ONNX files."""

    def apply_file(self, source: Path, target: Path, setting: Setting, data: Dataset) -> None:
        """Write `target`; `source` has its BatchNorm nodes and a symbolic batch. Otherwise as `ModuleTool.apply`."""
        ...


Tool = ModuleTool | FileTool
