"""What proximal steps cost in training: a step of the optimizer, and a proximal step by each solver, in turns.

python -m rankfold.benchmarks.cost resnet20 --size 32 --batch 128
python -m rankfold.benchmarks.cost torchvision.models:resnet50 --size 224 --batch 256 --classes 1000

`package.module:factory` is called without arguments. On the GPU if there is one, else on one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import InputError
from ..records import ModelSpec
from ..train.models import build, imported
from ..train.proximal import SOLVERS, Solver
from ..train.regularizer import CompressionAware
from .command import in_one_line

STRENGTH, RATE = 1e-3, 0.1


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def cost(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, rounds: int) -> dict[str, float]:
    """Median seconds of an optimizer's step, as "step", and of a proximal step by each solver, one after the other in
    every round; the first is not counted.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    aware: dict[Solver, CompressionAware] = {
        solver: CompressionAware(
            model, optimizer, low_rank=STRENGTH, group=STRENGTH, relative=True, every=1, solver=solver
        )
        for solver in SOLVERS
    }

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    found: dict[str, list[float]] = {name: [] for name in ("step", *aware)}
    for number in range(rounds + 1):
        took = {"step": seconds(step, images.device)}
        took |= {name: seconds(one.step, images.device) for name, one in aware.items()}
        if number:
            for name, value in took.items():
                found[name].append(value)
    return {name: median(values) for name, values in found.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with in_one_line():
        if given.rounds < 1:
            raise InputError(f"--rounds: expected at least 1, found {given.rounds}")
        torch.set_num_threads(1)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        name = given.model
        model = (imported(name)() if ":" in name else build(ModelSpec(name=name), 3, given.classes)).to(device)
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        images = torch.randn(given.batch, 3, given.size, given.size, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(given.classes, (given.batch,), device=device)
        took = cost(model, images, labels, given.rounds)
        for solver in SOLVERS:
            print(
                f"{given.model}, {device.type}, {solver}: a step {1000 * took['step']:.1f} ms, a proximal step "
                f"{1000 * took[solver]:.1f} ms: {took[solver] / took['step'] / 20:.1%} of training every 20 steps",
                flush=True,
            )


if __name__ == "__main__":
    main()
