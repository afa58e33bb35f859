"""What a user's script does in one of several processes: test_processes.py starts them, and does the last step again.

Every process has other images. Before the last step, a proximal one, the first process writes a checkpoint; after it
each writes its weights; then the last process is killed, and the others go on without it.
"""

from __future__ import annotations

import os
import signal
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rankfold.errors import RankfoldError
from rankfold.train import checkpoint
from rankfold.train.regularizer import CompressionAware

STEPS = 6


class Net(nn.Module):
    """Layers of three shapes, two of them alike."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 8, 8, 12)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in widths[1:])
        self.fc = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
        return self.fc(x.mean(dim=(2, 3)))


def made() -> tuple[Net, torch.optim.SGD]:
    torch.manual_seed(0)
    model = Net()
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def aware(model: nn.Module, optimizer: torch.optim.SGD) -> CompressionAware:
    return CompressionAware(model, optimizer, low_rank=0.05, group=0.05, every=STEPS)


def main(folder: Path, rank: int, count: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    torch.set_num_threads(1)
    model, optimizer = made()
    shared = DistributedDataParallel(model)
    regularizer = aware(shared, optimizer)
    images = torch.Generator().manual_seed(dist.get_rank())
    for step in range(STEPS):
        optimizer.zero_grad()
        shared(torch.randn(4, 3, 8, 8, generator=images)).square().mean().backward()
        optimizer.step()
        if step == STEPS - 1 and dist.get_rank() == 0:
            checkpoint.save(folder / "before.safetensors", model, optimizer, {"regularizer": regularizer.state_dict()})
        regularizer.step()
    weights = {name: value.contiguous() for name, value in model.named_parameters()}
    save_file(weights, folder / f"{dist.get_rank()}.safetensors")
    dist.barrier()
    if dist.get_rank() == dist.get_world_size() - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        regularizer.finish()
    except RankfoldError as error:
        (folder / f"{dist.get_rank()}.said").write_text(str(error))
        os._exit(error.exit_code)


if __name__ == "__main__":
    main(*globals()["GIVEN"])
