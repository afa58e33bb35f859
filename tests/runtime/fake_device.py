"""A device that exists only in here: its clock moves by what it is asked to do, and so does its speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from rankfold.errors import DeviceError, Unreachable

START_S = 0.4  # a process
CREATE_S = 0.05  # a session


class Clock:
    """Seconds that pass only when something is done."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class FakeDevice:
    """Runs take `run_s[file stem]` seconds, or `time_of(file)`, times `factor(seconds since boot)` and a little noise.

    `launch_factor(number of the process)` is a mode that a whole process falls into, `run_factor(file stem, number of
    the run)` hits single runs; `dies_at` kills the process of that number in its first block, `lost_at` loses
    the connection there; `facts`,
    `weather(seconds)`, `session(file stem)` and `block` change what it answers; `profiled` scales the nodes' times.
    """

    run_s: dict[str, float]
    factor: Callable[[float], float] = lambda _: 1.0
    launch_factor: Callable[[int], float] = lambda _: 1.0
    run_factor: Callable[[str, int], float] = lambda stem, run: 1.0
    noise: float = 0.003
    step_s: float = 0.0
    profiled: float = 1.0
    dies_at: int | None = None
    lost_at: tuple[int, ...] = ()
    time_of: Callable[[Path], float] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    weather: Callable[[float], dict[str, Any]] = lambda _: {}
    session: Callable[[str], dict[str, Any]] = lambda _: {}
    block: dict[str, Any] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    launches: int = 0
    alive: int = 0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(0)

    def seconds_of(self, model: Path) -> float:
        """A run of the model, when nothing disturbs it."""
        return self.run_s[model.stem] if self.time_of is None else self.time_of(model)

    def place(self, path: Path) -> str:
        return str(path)

    def launch(self) -> FakeProcess:
        self.clock.sleep(START_S)
        self.launches += 1
        return FakeProcess(self, self.launches)


class FakeProcess:
    """Answers as board.py does."""

    def __init__(self, device: FakeDevice, number: int) -> None:
        self.device, self.number, self.stem, self.run, self.run_s = device, number, "", 0, 0.0

    def __enter__(self) -> Self:
        self.device.alive += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.device.alive -= 1

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        device = self.device
        if request["command"] == "probe":
            return {**FACTS, **device.facts}
        if request["command"] == "weather":
            return {**WEATHER, **device.weather(device.clock())}
        if request["command"] == "contest":
            return self._contest(request)
        if request["command"] == "serve":
            self._load(Path(request["model"]))
            device.clock.sleep(CREATE_S)
            shapes = {"x": [1, 3, 16, 16]}
            return {**SESSION, "warmup_s": self._runs(50), "input_shapes": shapes, **device.session(self.stem)}
        if request["command"] == "operators":
            self._load(Path(request["model"]))
            runs = self._runs(1 + request["runs"])[1:]
            nodes = [("conv", "Conv", 0.6), ("relu", "Relu", 0.3)]
            return {
                "runs_s": runs,
                "nodes": [
                    {
                        "name": name,
                        "op": op,
                        "provider": "CPUExecutionProvider",
                        "samples_s": [device.profiled * share * run for run in runs],
                    }
                    for name, op, share in nodes
                ],
            }
        if request["command"] == "paced":
            return self._paced(1 / request["rate_hz"], request["frames"])
        if self.number in device.lost_at:
            raise Unreachable("no connection to the board")
        if device.dies_at == self.number:
            raise DeviceError("the board process was killed by SIGKILL; check free memory")
        self._runs(request["dropped"])
        began = device.clock()
        samples = self._runs(request["runs"])
        if device.clock() - began > limit_s:
            raise DeviceError(f"no answer from the board within {limit_s:g} s")
        return {**BLOCK, "samples_s": samples, "cpu_s": sum(samples), **device.block}

    def _load(self, model: Path) -> None:
        self.stem, self.run_s = model.stem, self.device.seconds_of(model)

    def _contest(self, request: dict[str, Any]) -> dict[str, Any]:
        samples: list[list[float]] = [[] for _ in request["models"]]
        begin = self.device.clock()
        for done in range(min(request["rounds"], 60)):
            if done >= 3 and self.device.clock() - begin > request["seconds"]:
                break
            for index, model in enumerate(request["models"]):
                self._load(Path(model))
                samples[index] += self._runs(1)
        return {"samples_s": samples}

    def _paced(self, period_s: float, frames: int) -> dict[str, Any]:
        clock, samples, responses, dropped = self.device.clock, [], [], 0
        begin = clock() + period_s
        for frame in range(frames):
            due = begin + frame * period_s
            if due < clock():
                dropped += 1
                continue
            clock.sleep(due - clock())
            samples += self._runs(1)
            responses.append(clock() - due)
        return {"samples_s": samples, "responses_s": responses, "dropped": dropped}

    def _runs(self, count: int) -> list[float]:
        device, samples = self.device, []
        mode = device.launch_factor(self.number) * self.run_s
        for _ in range(count):
            self.run += 1
            noise = float(np.exp(abs(device.noise * device.random.standard_normal())))
            noisy = noise * mode * device.factor(device.clock()) * device.run_factor(self.stem, self.run)
            device.clock.sleep(noisy)
            samples.append(max(round(noisy / device.step_s), 1) * device.step_s if device.step_s else noisy)
        return samples


FACTS = {
    "architecture": "aarch64",
    "cpu_model": "Test Board",
    "isa": ["asimd"],
    "logical_cores": 4,
    "affinity": [0, 1, 2, 3],
    "memory_bytes": 1 << 32,
    "kernel": "Linux 6.1",
    "os": "Test OS",
    "hypervisor": None,
    "python_version": "3.11.2",
    "numpy_version": "2.0.0",
    "onnxruntime_version": "1.32.0",
    "providers": ["CPUExecutionProvider"],
    "nchwc": False,
}
WEATHER = {
    "load_1min": 0.1,
    "memory_available_bytes": 1 << 31,
    "temperatures_c": {"thermal_zone0 cpu": 45.0},
    "throttled": None,
    "cores": [],
    "steal_s": 0.0,
}
SESSION = {
    "session_creation_s": CREATE_S,
    "first_run_s": 2e-3,
    "baseline_rss_bytes": 50_000_000,
    "peak_rss_bytes": 60_000_000,
    "providers": ["CPUExecutionProvider"],
    "nodes_by_provider": {"CPUExecutionProvider": 3},
}
BLOCK = {"steal_s": 0.0, "involuntary_switches": 0}
