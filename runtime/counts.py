"""What models cost in instructions on an emulated device, and whether that is within bounds: a proxy for time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..devices import probe
from ..devices.counting import Counted, count, qemu_version
from ..devices.qemu import QemuTransport
from ..errors import CheckFailed, InputError
from ..records import Card, Cost, Facts, LayerCount, ModelCount
from .serving import naming, source, told
from .turns import Options

TOLERANCE = 1e-3  # more than this is no accident: counts repeat to 1e-4
LayersOf = Callable[[Path, Callable[[Sequence[Path]], list[Counted]]], list[LayerCount]]


@dataclass(frozen=True)
class Counting:
    """An emulated device on which models are counted, one thread each."""

    card: Card
    options: Options

    def __post_init__(self) -> None:
        if self.card.transport != "qemu":
            name = self.card.name
            raise InputError(
                f"instructions are counted on qemu-… alone, not on '{name}'; name one, or use rankfold bench"
            )

    def cost(
        self,
        models: Sequence[tuple[str, Path]],
        layers_of: LayersOf | None = None,
        report: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> Cost:
        """One run of each model, in a process of its own, and with `layers_of` of each of its layers."""
        transport = QemuTransport(self.card)
        qemu = qemu_version()
        sources = [source(name, path) for name, path in models]
        facts = self._facts(transport)
        found = []
        for done, model in enumerate(sources):
            report(model.name, done, len(sources))
            with naming(model.name):
                (whole,) = self.counted([model.path])
                layers = (
                    [] if layers_of is None else layers_of(model.path, Counting(self.card, _own(self.options)).counted)
                )
            found.append(
                ModelCount(
                    name=model.name,
                    file=str(model.path),
                    sha256=model.sha256,
                    macs=model.costs.macs,
                    instructions=whole.instructions,
                    multiplying=whole.multiplying,
                    multiply_adds=whole.multiply_adds,
                    layers=layers,
                )
            )
        report("done", len(sources), len(sources))
        return Cost(
            device=self.card.name,
            facts=facts,
            qemu_version=qemu,
            input_shapes={name: list(shape) for name, shape in self.options.shapes.items()},
            models=found,
        )

    def counted(self, models: Sequence[Path]) -> list[Counted]:
        """One run of each file, all in one process."""
        transport = QemuTransport(self.card)
        request = {"models": [transport.place(path) for path in models], **told(transport, self.options, [])}
        return count(transport, request)

    def _facts(self, transport: QemuTransport) -> Facts:
        with transport.launch() as process:
            facts = probe.facts(process)
            probe.check_card(self.card, facts)
            return facts


def _own(options: Options) -> Options:
    """For layers alone, which have inputs of their own."""
    return replace(options, shapes={}, inputs=None)


def judge(found: Cost, at_most: int | None, before: Cost | None) -> None:
    """Raises CheckFailed where a model takes more instructions than `at_most`, or than it did before; InputError where
    what was counted before was something else.
    """
    for model in found.models:
        if at_most is not None and model.instructions > at_most:
            raise CheckFailed(
                f"{model.name}: {model.instructions:,} instructions on {found.device}, allowed {at_most:,}"
            )
    if before is None:
        return
    _require_alike(found, before)
    then = {model.name: model.instructions for model in before.models}
    for model in found.models:
        if model.name not in then:
            raise InputError(f"{model.name} was not counted before, only {', '.join(then)}; count it and keep that")
        more = model.instructions / then[model.name] - 1
        if more > TOLERANCE:
            raise CheckFailed(
                f"{model.name}: {model.instructions:,} instructions on {found.device}, {more:.2%} more than the "
                f"{then[model.name]:,} before; allowed {TOLERANCE:.1%}"
            )


def _require_alike(found: Cost, before: Cost) -> None:
    for key in ("cpu_model", "isa", "onnxruntime_version"):
        now, then = getattr(found.facts, key), getattr(before.facts, key)
        if now != then:
            raise InputError(f"counts of unlike things do not compare: {key} was {then}, is {now}; count both alike")
    if found.input_shapes != before.input_shapes:
        raise InputError(f"inputs were {before.input_shapes or 'the models own'}; give the same --shape again")
