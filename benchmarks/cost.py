"""What proximal steps cost in training: a step of the optimizer, and a proximal step by each solver, in turns.

python -m rankfold.benchmarks.cost run resnet20 --widths 16-32-64 32-64-128 64-128-256
python -m rankfold.benchmarks.cost run torchvision.models:resnet50 --size 224 --batch 256 --classes 1000
python -m rankfold.benchmarks.cost show

gram, svd, newton-schulz    how singular values are found (`train.proximal.nuclear_norm_prox`)
steered                     by Gram matrices, the strengths sought so that MACs fall in a straight line

Low rank and groups act in every layer. `package.module:factory` is called without arguments. On the GPU if there is
one, else on one thread.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..devices import probe
from ..devices.local import LocalTransport
from ..errors import InputError
from ..records import CostRow, ModelSpec
from ..runtime.stats import ratio_interval
from ..terminal import bars
from ..train.models import build, imported
from ..train.proximal import SOLVERS
from ..train.regularizer import CompressionAware
from .command import in_one_line
from .rows import read, write

RESULTS = Path("docs/results/cost.jsonl")
STRENGTH, RATE = 1e-3, 0.1
STEERED, LEFT = "steered", 0.4  # and the share of MACs left after all rounds
EVERY = 20  # optimizer steps: between the proximal steps that the table tells the cost of


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def cost(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, rounds: int, say: Callable[[int], None]
) -> dict[str, list[float]]:
    """Seconds of an optimizer's step, as "step", and of a proximal step of each way, one after the other in every
    round; the first round is not counted.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    given: dict[str, Any] = {"low_rank": STRENGTH, "group": STRENGTH, "relative": True, "every": 1}
    aware = {solver: CompressionAware(model, optimizer, solver=solver, **given) for solver in SOLVERS}
    steered = CompressionAware(model, optimizer, target_macs=LEFT, hold_at=rounds + 2, **given)
    ways: dict[str, CompressionAware] = {**aware, STEERED: steered}

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    found: dict[str, list[float]] = {name: [] for name in ("step", *ways)}
    for number in range(rounds + 1):
        took = {"step": seconds(step, images.device)}
        took |= {name: seconds(one.step, images.device) for name, one in ways.items()}
        say(number + 1)
        if number:
            for name, value in took.items():
                found[name].append(value)
    return found


def row_of(network: str, way: str, found: dict[str, list[float]], facts: dict[str, Any]) -> CostRow:
    """One way beside the optimizer's step: the ratio of both, over rounds."""
    pairs = zip(found[way], found["step"], strict=True)
    ratio = ratio_interval([math.log(proximal / step) for proximal, step in pairs])
    return CostRow(
        network=network,
        way=way,
        step_s=median(found["step"]),
        proximal_s=median(found[way]),
        ratio=ratio.value,
        low=ratio.low,
        high=ratio.high,
        rounds=len(found[way]),
        **facts,
    )


def markdown(rows: Sequence[CostRow]) -> str:
    """A network and way a line."""
    lines = [
        f"| network | on | batch | step | way | proximal step | of training, every {EVERY} steps | every 100 |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        share = f"{row.ratio / EVERY:.2%} ({row.low / EVERY:.2%} to {row.high / EVERY:.2%})"
        times = f"{1e3 * row.step_s:.0f} ms | {row.way} | {1e3 * row.proximal_s:.0f} ms"
        lines.append(
            f"| {row.network} | {row.machine} | {row.batch} | {times} | {share} | {row.ratio / 100:.2%} |".replace(
                "%", " %"
            )
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    going, showing = commands.add_parser("run", help="measure"), commands.add_parser("show", help="a table of the rows")
    going.add_argument("network")
    going.add_argument("--widths", nargs="+", default=[""], metavar="N-N-N", help="of a built-in network, one by one")
    going.add_argument("--size", type=int, default=32)
    going.add_argument("--batch", type=int, default=128)
    going.add_argument("--classes", type=int, default=10)
    going.add_argument("--rounds", type=int, default=8)
    for one in (going, showing):
        one.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    with in_one_line("give the same command again"):
        rows = {(row.network, row.way, row.batch, row.machine): row for row in read(given.results, CostRow)}
        if given.command == "show":
            print(markdown(list(rows.values())))
            return
        if given.rounds < 2:
            raise InputError(f"--rounds: expected at least 2, found {given.rounds}")
        for widths in given.widths:
            for row in _measured(given, widths):
                rows[row.network, row.way, row.batch, row.machine] = row
                print(row.model_dump_json(), flush=True)
            write(given.results, rows.values())


def _measured(given: argparse.Namespace, widths: str) -> list[CostRow]:
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        arguments = {"widths": [int(width) for width in widths.split("-")]} if widths else {}
    except ValueError as error:
        raise InputError(f"--widths: expected numbers as 16-32-64, found {widths}") from error
    if ":" in given.network:
        model = imported(given.network)()
    else:
        model = build(ModelSpec(name=given.network, arguments=arguments), 3, given.classes)
    model = model.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = torch.randn(given.batch, 3, given.size, given.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(given.classes, (given.batch,), device=device)
    name = f"{given.network}{f' {widths}' if widths else ''}"
    began = time.monotonic()
    with bars() as new_bar:
        bar = new_bar(name)

        def say(done: int) -> None:
            bar.show(done, given.rounds + 1, (given.rounds + 1 - done) * (time.monotonic() - began) / done, "rounds")

        found = cost(model, images, labels, given.rounds, say)
    facts = {"batch": given.batch, "size": given.size, "machine": f"{_processor(device)}, torch {torch.__version__}"}
    return [row_of(name, way, found, facts) for way in found if way != "step"]


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    with LocalTransport().launch() as process:
        return probe.facts(process).cpu_model or "a CPU"


if __name__ == "__main__":
    main()
