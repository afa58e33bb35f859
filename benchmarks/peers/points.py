"""A point of the comparison: a network, a tool's setting, and how long what came of it learns on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ...files import digest
from .subjects import Subject
from .tools import Setting

MODEL = "model.onnx"


@dataclass(frozen=True)
class Point:
    """`weight` is of distillation where there are epochs; `int8` the setting by which it is quantised."""

    setting: Setting
    epochs: float = 0.0
    weight: float | None = None
    int8: Setting | None = None

    def config_hash(self, subject: Subject) -> str:
        """Twelve hex digits over all that decides what the network is."""
        int8 = None if self.int8 is None else _told(self.int8)
        learning = None
        if self.weight is not None:
            learning = subject.learning(self.epochs, self.weight).model_dump(mode="json", exclude_defaults=True)
        return digest([subject.name, subject.identity, _told(self.setting), learning, int8])

    def folder(self, subject: Subject) -> Path:
        """Of this point alone."""
        return subject.folder / "points" / self.config_hash(subject)

    def file(self, subject: Subject) -> Path:
        """Its network."""
        return self.folder(subject) / MODEL

    @property
    def beginning(self) -> Point:
        """As the tool leaves it."""
        return Point(self.setting)

    @property
    def is_alone(self) -> bool:
        """Whether nothing else may run while it is made; what learns measures nothing."""
        if self.int8 is not None:
            return self.int8.is_alone
        return self.weight is None and self.setting.is_alone

    @property
    def in_float(self) -> Point:
        """Before it is quantised."""
        return replace(self, int8=None)


def _told(setting: Setting) -> list[object]:
    return [setting.tool, setting.name, dict(setting.arguments)]
