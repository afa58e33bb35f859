"""The harness on files whose true ratio is known: does the interval cover it as often as it says?

python -m rankfold.benchmarks.evidence run [SCENARIO …] [--results FILE] [--minutes M] [--device NAME]
python -m rankfold.benchmarks.evidence show [--results FILE]     a table of what the rows say

One row a comparison, appended as soon as it is measured; a run goes on where it was, and rows of another machine or
another state of the harness are kept apart. Nothing else should run meanwhile. `over-ssh` needs a device with transport
ssh that is this very machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from statistics import median

import onnx

from ..devices import card
from ..devices.board import affinity
from ..devices.local import LocalTransport
from ..devices.reach import transport_of
from ..devices.transport import Transport
from ..errors import InputError
from ..records import Bench, Card, EvidenceRow
from ..runtime.measure import Options, measure
from ..runtime.stats import Interval, pair_log_ratio, pairs_wanted, samples_of, welch_interval
from ..terminal import bars, duration
from .command import in_one_line, machine_of
from .folding import Layers
from .rows import read, write
from .transports import Bare, Impatient, Replayed

RESULTS = Path("docs/results/evidence.jsonl")
HARNESS = "3"  # raise it when what is measured, or how, changes: older rows then no longer count
EXTRA = (8, 16, 24, 32, 48)  # channels of the extra layer among which the one nearest to 1 % is chosen
TRUTH_PAIRS = 230  # ten minutes
# What the samples themselves say; other cautions are true of a machine whatever was measured.
OF_THE_SAMPLES = (
    *("launches fall into modes", "slower than their launch's best", "times their block's median"),
    *("as fast as a rule", "is ±"),
)


@dataclass(frozen=True)
class Scenario:
    """`count` comparisons of the baseline with another file, at so many threads, while something goes on."""

    name: str
    about: str
    count: int
    extra_work: bool = False
    threads: int = 1
    pairs: int | None = None
    transport: Callable[[int], Transport] = lambda seed: LocalTransport()
    beside: Callable[[], AbstractContextManager[object]] = nullcontext
    over_ssh: bool = False


@contextmanager
def competitor() -> Iterator[None]:
    """A process that never rests, on the core that one thread is measured on."""
    code = f"import os\nos.sched_setaffinity(0, [{affinity()[-1]}])\nwhile True:\n    pass"
    child = subprocess.Popen([sys.executable, "-I", "-c", code])
    try:
        yield
    finally:
        child.kill()
        child.wait()


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("same", "a file and its copy", 300),
        Scenario("truth", "1 % more work, ten minutes long: the true ratio", 1, extra_work=True, pairs=TRUTH_PAIRS),
        Scenario("extra", "a file and one with 1 % more work", 100, extra_work=True),
        Scenario("same-contended", "a copy; a competitor on the same core", 100, beside=competitor),
        Scenario("same-replayed", "a copy; slowed 1.57-fold now and then", 100, transport=Replayed),
        Scenario("same-two-threads", "a copy, two threads", 50, threads=2),
        Scenario(
            "bare-loop", "a plain loop of session.run against the harness", 20, transport=lambda _: Bare("copy.onnx")
        ),
        Scenario("bare-loop-two-threads", "the same", 20, threads=2, transport=lambda _: Bare("copy.onnx")),
        Scenario("over-ssh", "1 % more work, here and over ssh: the ratio of both ratios", 10, True, over_ssh=True),
        Scenario("no-wait-two-threads", "a copy; no waiting for pools", 20, threads=2, transport=lambda _: Impatient()),
    )
}


# --- the models ----------------------------------------------------------------------------------------------


def network(extra: int = 0) -> onnx.ModelProto:
    """A residual network of ResNet-20's shape with random weights; with extra work at its end, a 1×1 convolution to
    `extra` channels and one back.
    """
    layers = Layers()
    x = layers.op("Relu", layers.conv_bn("input", "stem", (16, 3, 3, 3)))
    channels = 16
    for stage, out in enumerate((16, 32, 64)):
        for block in range(3):
            name, stride = f"{stage}.{block}", 2 if out != channels else 1
            y = layers.op("Relu", layers.conv_bn(x, f"{name}.a", (out, channels, 3, 3), stride))
            y = layers.conv_bn(y, f"{name}.b", (out, out, 3, 3))
            short = layers.conv_bn(x, f"{name}.s", (out, channels, 1, 1), stride) if stride == 2 else x
            x, channels = layers.op("Relu", layers.op("Add", y, short)), out
    if extra:
        x = layers.op("Relu", layers.conv_bn(x, "more.a", (extra, channels, 1, 1)))
        x = layers.op("Relu", layers.conv_bn(x, "more.b", (channels, extra, 1, 1)))
    pooled = layers.op("Flatten", layers.op("GlobalAveragePool", x))
    weight = layers.generator.normal(0, 0.1, (10, channels))
    return layers.model(layers.op("Gemm", pooled, layers.constant("fc", weight), transB=1), 32)


def written(folder: Path, extra: int) -> list[tuple[str, Path]]:
    """The baseline and what it is compared with, its copy or one with so many channels of extra work."""
    models = {"base": network(), "extra" if extra else "copy": network(extra)}
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
    return [(name, folder / f"{name}.onnx") for name in models]


def chosen_extra() -> int:
    """The extra work that comes nearest to 1 % here."""
    with tempfile.TemporaryDirectory() as folder:
        names = [0, *EXTRA]
        for extra in names:
            onnx.save(network(extra), Path(folder) / f"{extra}.onnx")
        models = [(str(extra), Path(folder) / f"{extra}.onnx") for extra in names]
        bench = measure(models, LocalTransport(), card.find("host"), Options(pairs=8))
    share = {int(comparison.variant): 1 / comparison.ratio for comparison in bench.comparisons}
    return min(share, key=lambda extra: abs(math.log(share[extra] / 1.01)))


# --- rows ----------------------------------------------------------------------------------------------------


@cache
def config_hash(scenario: Scenario, extra: int) -> str:
    """Twelve hex digits over what is measured and how."""
    model = hashlib.sha256(network(extra).SerializeToString(deterministic=True)).hexdigest()
    facts = [HARNESS, scenario.name, scenario.threads, scenario.pairs, model]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def compared(scenario: Scenario, seed: int, extra: int, device: Card | None = None) -> EvidenceRow:
    """Measure once; over ssh too, and every other time there first, where that is the scenario."""
    began = time.monotonic()
    options = Options(threads=scenario.threads, pairs=scenario.pairs, seed=seed * 1000)
    ways = {"here": (scenario.transport(seed), card.find("host"))}
    if scenario.over_ssh:
        assert device is not None, "the command asked for it"
        ways["there"] = (transport_of(device), device)
    with tempfile.TemporaryDirectory() as folder, scenario.beside():
        models = written(Path(folder), extra)
        order = list(ways.items())[:: -1 if seed % 2 else 1]
        benches = {name: measure(models, *way, options) for name, way in order}
    bench = benches["here"]
    facts, measured = bench.context.facts, bench.comparisons[0]
    found = Interval(measured.ratio, measured.low, measured.high)
    if scenario.over_ssh:
        found = apart(bench, benches["there"])
    return EvidenceRow(
        scenario=scenario.name,
        seed=seed,
        config_hash=config_hash(scenario, extra),
        machine=machine_of(facts),
        threads=scenario.threads,
        pairs=measured.pairs,
        ratio=found.value,
        low=found.low,
        high=found.high,
        latency_s=median(samples_of(bench.pairs, "base")),
        cautions=[c.what for c in bench.cautions if any(says in c.what for says in OF_THE_SAMPLES)],
        took_s=time.monotonic() - began,
        started_at=bench.context.started_at,
    )


def apart(here: Bench, there: Bench) -> Interval:
    """The speed-up measured here over that measured there, with Welch's interval over the pairs of both."""
    machines = [machine_of(bench.context.facts) for bench in (here, there)]
    if machines[0] != machines[1]:
        raise InputError(f"expected a way to this very machine ({machines[0]}), found {machines[1]}; correct the card")
    logs = [[pair_log_ratio(pair) for pair in bench.pairs] for bench in (here, there)]
    return welch_interval(*logs)


class Evidence:
    """The rows of a file, and those that are still to be measured, some of them on a device."""

    def __init__(self, results: Path, device: Card | None = None) -> None:
        self.results, self.rows, self._device = results, read(results, EvidenceRow), device
        here = _machine()
        self.mine = [row for row in self.rows if row.machine == here]

    def missing(self, scenario: Scenario) -> list[int]:
        """Seeds that have no row yet."""
        hashed = config_hash(scenario, self._extra_of(scenario))
        known = {row.seed for row in self.mine if row.config_hash == hashed}
        return [seed for seed in range(scenario.count) if seed not in known]

    def measure(self, scenario: Scenario, seed: int) -> EvidenceRow:
        """One more row, written at once."""
        row = compared(scenario, seed, self._extra_of(scenario), self._device)
        self.rows.append(row)
        self.mine.append(row)
        write(self.results, self.rows)
        return row

    def _extra_of(self, scenario: Scenario) -> int:
        return self._extra if scenario.extra_work else 0

    @cached_property
    def _extra(self) -> int:
        """The extra work that earlier rows had, else what comes nearest to 1 % now."""
        hashes = {row.config_hash for row in self.mine}
        scenarios = [scenario for scenario in SCENARIOS.values() if scenario.extra_work]
        known = (extra for extra in EXTRA for scenario in scenarios if config_hash(scenario, extra) in hashes)
        return next(known, 0) or chosen_extra()


def _machine() -> str:
    from ..devices import probe

    with LocalTransport().launch() as process:
        facts = probe.facts(process)
    return machine_of(facts)


def run(evidence: Evidence, names: Sequence[str], minutes: float | None) -> None:
    """Measure what is missing, scenario by scenario, until the time is up."""
    plan = [(SCENARIOS[name], seed) for name in names for seed in evidence.missing(SCENARIOS[name])]
    until = math.inf if minutes is None else time.monotonic() + 60 * minutes
    took: dict[str, list[float]] = {name: [] for name in names}
    for row in evidence.mine:
        took.setdefault(row.scenario, []).append(row.took_s)
    with bars() as new_bar:
        bar = new_bar("evidence")
        for done, (scenario, seed) in enumerate(plan):
            if time.monotonic() > until:
                break
            left = sum(_expected(took, one) for one, _ in plan[done:])
            bar.show(done, len(plan), left, f"{scenario.name} {seed}")
            took[scenario.name].append(evidence.measure(scenario, seed).took_s)


def _expected(took: dict[str, list[float]], scenario: Scenario) -> float:
    if took[scenario.name]:
        return median(took[scenario.name])
    return (3.2 if scenario.threads == 1 else 2.5) * (scenario.pairs or pairs_wanted(scenario.threads))


# --- what the rows say ---------------------------------------------------------------------------------------


def table(rows: Sequence[EvidenceRow]) -> str:
    """Markdown: for each scenario how many intervals contain 1, lie below it (the other file is slower) or above, their
    width, and how many comparisons have a caution of the samples.
    """
    lines = [
        "| scenario | threads | pairs | comparisons | contain 1 | slower | faster | half-width, median (90 %) |"
        " with a caution | ratio, median | p50 ms | took s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    kinds = dict.fromkeys((row.scenario, row.config_hash, row.machine) for row in rows)
    for scenario, hashed, machine in kinds:
        mine = [row for row in rows if (row.scenario, row.config_hash, row.machine) == (scenario, hashed, machine)]
        halves = sorted(math.log(row.high / row.low) / 2 for row in mine)
        cells = (
            scenario,
            mine[0].threads,
            mine[0].pairs,
            len(mine),
            sum(row.low <= 1 <= row.high for row in mine),
            sum(row.high < 1 for row in mine),
            sum(row.low > 1 for row in mine),
            f"{median(halves):.2%} ({halves[int(0.9 * (len(halves) - 1))]:.2%})",
            sum(bool(row.cautions) for row in mine),
            f"{median(row.ratio for row in mine):.4f}",
            f"{1e3 * median(row.latency_s for row in mine):.3f}",
            f"{median(row.took_s for row in mine):.0f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    going = commands.add_parser("run", help="measure what is missing")
    going.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}; all without")
    going.add_argument("--device", help="for over-ssh: a device with transport ssh that is this machine")
    going.add_argument("--minutes", type=float, help="stop after this long; the same command goes on")
    showing = commands.add_parser("show", help="a table of what the rows say")
    for one in (going, showing):
        one.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    with in_one_line():
        if given.command == "show":
            print(table(read(given.results, EvidenceRow)))
            return
        device = None if given.device is None else card.find(given.device)
        names = given.scenarios or [name for name, one in SCENARIOS.items() if device is not None or not one.over_ssh]
        if unknown := [name for name in names if name not in SCENARIOS]:
            raise InputError(f"unknown scenario '{unknown[0]}'; known are {', '.join(SCENARIOS)}")
        if (device is None or device.transport != "ssh") and any(SCENARIOS[name].over_ssh for name in names):
            raise InputError("over-ssh needs --device with a card of transport ssh that leads to this machine")
        began = time.monotonic()
        run(Evidence(given.results, device), names, given.minutes)
        print(table(read(given.results, EvidenceRow)))
        print(f"{given.results}: {duration(time.monotonic() - began)}")


if __name__ == "__main__":
    main()
