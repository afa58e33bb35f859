"""Several processes, with gloo: the weights of one process alone, to the bit; a lost process, and how it goes on."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rankfold.benchmarks.training import forking
from rankfold.records import TrainRecord
from rankfold.train import checkpoint, processes
from rankfold.train.trainer import CHECKPOINT, RECORD

from ..conftest import SOAK
from .recipes import toml
from .worker import STEPS, aware, made

LIMIT_S = 600  # a slow machine imports torch for half a minute, three times at once


def torchrun(count: int, *command: str) -> list[str]:
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return [*line, *command]


def test_several_make_the_weights_of_one_process_and_a_lost_process_ends_the_others(tmp_path, counts):
    workers = counts(2, 4)
    script = str(Path(__file__).with_name("worker.py"))
    children = [
        forking().Process(
            target=runpy.run_path, args=(script, {"GIVEN": (tmp_path, rank, workers)}, "__main__"), daemon=True
        )
        for rank in range(workers)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(LIMIT_S)
    *others, lost = (child.exitcode for child in children)
    assert (set(others), lost) == ({processes.LostProcess.exit_code}, -signal.SIGKILL)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, optimizer = made()
        stored = checkpoint.load(tmp_path / "before.safetensors")
        checkpoint.restore(stored, model, optimizer)
        alone = aware(model, optimizer)
        alone.load_state_dict(stored.facts["regularizer"])
        assert alone.step()
    finally:
        torch.set_num_threads(threads)
    changed = [name for name, value in model.named_parameters() if not torch.equal(value, stored.model_state()[name])]
    assert len(changed) > STEPS
    for number in range(workers):
        weights = load_file(tmp_path / f"{number}.safetensors")
        assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters()), number
    assert (tmp_path / "0.said").read_text() == processes.LOST


def test_work_is_shared_out_dearest_first(monkeypatch):
    assert processes.share_out({"a": 1.0, "b": 2.0}) == {"a": 0, "b": 0}
    monkeypatch.setattr(processes, "count", lambda: 2)
    assert processes.share_out({"a": 1.0, "b": 5.0, "c": 2.0, "d": 2.5}) == {"b": 0, "d": 1, "c": 1, "a": 1}


@pytest.mark.skipif(not SOAK, reason="five trainings under torchrun take a minute: make soak")
def test_a_training_that_lost_a_process_goes_on_with_the_same_bytes(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(toml().replace("steps = 30", "steps = 90"))

    def command(folder: str, *options: str) -> list[str]:
        given = ["train", str(recipe), "--out", str(tmp_path / folder), "--threads", "1", *options]
        return torchrun(2, "-m", "rankfold", *given)

    subprocess.run(command("whole"), capture_output=True, check=True, timeout=LIMIT_S)
    for victim in (0, 1):
        folder = f"without-{victim}"
        with subprocess.Popen(command(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            until = time.monotonic() + LIMIT_S
            while not (tmp_path / folder / CHECKPOINT).exists():
                assert time.monotonic() < until, "no checkpoint within the limit"
                time.sleep(0.02)
            os.kill(_workers(child.pid)[victim], signal.SIGKILL)
            _, err = child.communicate(timeout=LIMIT_S)
        assert child.returncode != 0
        assert f"rankfold: {processes.LOST}" in err.splitlines(), err
        assert not (tmp_path / folder / RECORD).exists()
        subprocess.run(command(folder, "--resume"), capture_output=True, check=True, timeout=LIMIT_S)
        ours, theirs = (checkpoint.load(tmp_path / name / CHECKPOINT).tensors for name in (folder, "whole"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert TrainRecord.read(tmp_path / folder / RECORD).steps == 90


def _workers(pid: int) -> list[int]:
    """Processes that torchrun started, by their number."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    found = {int(one): Path(f"/proc/{one}/environ").read_bytes().split(b"\0") for one in text.split()}
    ranks = {
        one: int(entry.removeprefix(b"RANK="))
        for one, entries in found.items()
        for entry in entries
        if entry.startswith(b"RANK=")
    }
    return sorted(ranks, key=lambda one: ranks[one])
