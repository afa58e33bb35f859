"""Small ONNX models and a quiet, invented bench that a test changes in one place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rankfold.records import Bench, Block, Context, Facts, Launch, Pair, Variant, Weather
from rankfold.runtime.measure import compare
from rankfold.runtime.turns import mirrored_order

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

SHA = "0" * 64
Simulate = Callable[[str, int, int], np.ndarray]


def save_convolution(path: Path, channels: int = 8, size: int = 16, batch: int | str = "batch") -> Path:
    """One 3×3 convolution of 3 to `channels` channels with padding, named conv, and a ReLU."""
    weight = np.random.default_rng(0).standard_normal((channels, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"], name="relu"),
        ],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, channels, size, size])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture
def convolution(tmp_path: Path) -> Path:
    return save_convolution(tmp_path / "convolution.onnx")


def make_pair(seed: int, couples: int, simulate: Simulate, variant: str = "compact") -> Pair:
    """A pair whose blocks are `simulate(variant name, turn, turns)`, in a mirrored order."""
    order = mirrored_order(("dense", variant), couples, seed)
    blocks = [
        Block(
            variant=name,
            start_s=1.0 + turn * 0.02,
            samples_s=simulate(name, turn, len(order)).tolist(),
            cpu_s=0.02,
            steal_s=0.0,
            involuntary_switches=0,
        )
        for turn, name in enumerate(order)
    ]
    return Pair(baseline="dense", variant=variant, seed=seed, blocks=blocks)


def make_launch(pair: int, providers: tuple[str, ...] = ("CPUExecutionProvider",)) -> Launch:
    return Launch(
        pair=pair,
        warmup_s=[1e-3],
        session_creation_s=0.01,
        first_run_s=2e-3,
        peak_rss_bytes=60_000_000,
        baseline_rss_bytes=50_000_000,
        providers=list(providers),
        nodes_by_provider=dict.fromkeys(providers, 3),
    )


FACTS = Facts(
    architecture="aarch64",
    cpu_model="Test Board",
    isa=["asimd"],
    logical_cores=4,
    affinity=[0, 1, 2, 3],
    memory_bytes=1 << 32,
    kernel="Linux 6.1",
    os="Test OS",
    hypervisor=None,
    python_version="3.11.2",
    numpy_version="2.0.0",
    onnxruntime_version="1.32.0",
    providers=["CPUExecutionProvider"],
    tile=4,
    layout="nchw",
)
CALM = Weather(load_1min=0.1, memory_available_bytes=1 << 31, steal_s=0.0)


def make_bench(simulate: Simulate, pairs: int = 8, couples: int = 12, threads: int = 1) -> Bench:
    """Dense against compact on an invented board; cautions are left empty."""
    timed = [make_pair(seed, couples, simulate) for seed in range(pairs)]
    context = Context(
        device="board",
        facts=FACTS,
        threads=threads,
        cores=[3],
        provider="CPUExecutionProvider",
        session_config={},
        input_shapes={"x": [1, 3, 16, 16]},
        block_runs=20,
        dropped_runs=2,
        started_at="2026-01-01T00:00:00+00:00",
        weather_before=CALM,
        weather_after=CALM,
    )
    launches = [make_launch(pair) for pair in range(pairs)]
    variants = [
        Variant(name=name, file=f"{name}.onnx", sha256=SHA, size_bytes=1, macs=1, parameters=1, launches=launches)
        for name in ("dense", "compact")
    ]
    comparisons = [compare("dense", "compact", timed)]
    return Bench(context=context, variants=variants, pairs=timed, comparisons=comparisons, cautions=[])


def quiet_samples(seed: int = 0, ratio: float = 2.0, dense_s: float = 1e-3, noise: float = 0.005) -> Simulate:
    """Blocks of 20 samples, log-normal around `dense_s` and `dense_s / ratio`."""
    rng = np.random.default_rng(seed)

    def simulate(name: str, turn: int, turns: int) -> np.ndarray:
        del turn, turns
        centre_s = dense_s / (ratio if name == "compact" else 1.0)
        return centre_s * np.exp(noise * rng.standard_normal(20))

    return simulate
