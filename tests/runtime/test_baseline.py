"""Two benches of one device: what has changed is found whatever the day, and unlike benches are refused by name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rankfold.errors import CheckFailed, Inconclusive, InputError
from rankfold.records import Bench, CpuFacts
from rankfold.runtime.baseline import changes, judge
from rankfold.runtime.stats import welch_interval
from rankfold.runtime.summary import bench_summary, changes_summary

from .conftest import CALM, FACTS, make_bench, quiet_samples

OTHER = "1" * 64


def then() -> Bench:
    return make_bench(quiet_samples(seed=1), couples=4)


def now(ratio: float = 2.0, slow_day: float = 1.0, noise: float = 0.005, pairs: int = 8) -> Bench:
    return make_bench(quiet_samples(seed=2, ratio=ratio, dense_s=1e-3 * slow_day, noise=noise), couples=4, pairs=pairs)


def with_context(bench: Bench, **changed: Any) -> Bench:
    return bench.model_copy(update={"context": bench.context.model_copy(update=changed)})


def with_facts(**changed: Any) -> Bench:
    return with_context(now(), facts=FACTS.model_copy(update=changed))


@pytest.mark.parametrize("slow_day", [1.0, 1.3])
def test_a_model_that_became_slower_is_seen_on_a_slow_day_too(slow_day):
    (change,) = changes(then(), now(ratio=1.8, slow_day=slow_day)).changes
    assert change.low < 2.0 / 1.8 < change.high
    assert change.high - change.low < 0.02
    assert (change.then, change.now) == (pytest.approx(2.0, rel=0.01), pytest.approx(1.8, rel=0.01))
    assert change.same_file
    assert change.pairs == (8, 8)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Pairs of two benches that differ in noise and number."""
    rng, covered, count = np.random.default_rng(3), 0, 400
    for _ in range(count):
        interval = welch_interval(
            (0.01 * rng.standard_normal(8)).tolist(), (0.1 + 0.03 * rng.standard_normal(24)).tolist()
        )
        covered += interval.low <= math.exp(-0.1) <= interval.high
    assert 0.92 <= covered / count <= 0.98


@pytest.mark.parametrize(
    ("new", "key", "says"),
    [
        (lambda: with_context(now(), device="pi4"), "device", "'board' then, 'pi4' now"),
        (lambda: with_context(now(), provider="XnnpackExecutionProvider"), "provider", "Xnnpack"),
        (lambda: with_context(now(), threads=2), "threads", "1 then, 2 now"),
        (lambda: with_context(now(), cores=[0]), "cores", r"\[3\] then, \[0\] now"),
        (lambda: with_context(now(), session_config={"a": "1"}), "session_config", "'a': '1'"),
        (lambda: with_context(now(), input_shapes={"x": [2, 3, 16, 16]}), "input_shapes", r"\[2, 3, 16, 16\]"),
        (lambda: with_context(now(), inputs_sha256="ab12"), "inputs_sha256", "None then, 'ab12' now"),
        (lambda: with_context(now(), dropped_runs=0), "dropped_runs", "2 then, 0 now"),
        (lambda: with_facts(architecture="x86_64"), "architecture", "'aarch64' then"),
        (lambda: with_facts(cpu_model="Other Board"), "cpu_model", "'Other Board' now"),
        (lambda: with_facts(isa=["asimd", "asimddp"]), "isa", "asimddp"),
        (lambda: with_facts(logical_cores=8), "logical_cores", "4 then, 8 now"),
        (lambda: with_facts(hypervisor=True), "hypervisor", "None then, True now"),
        (lambda: with_facts(emulated=True), "emulated", "False then, True now"),
        (lambda: with_facts(onnxruntime_version="1.17.0"), "onnxruntime_version", "'1.17.0' now"),
        (lambda: with_facts(layout="nchwc"), "layout", "'nchwc' now"),
        (lambda: with_facts(tile=8), "tile", "4 then, 8 now"),
        (
            lambda: with_context(
                now(),
                weather_before=CALM.model_copy(
                    update={"cores": [CpuFacts(core=3, governor="powersave", frequency_hz=None)]}
                ),
            ),
            "governor",
            "powersave",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_unlike_contexts_are_refused_by_the_name_of_the_key(new, key, says):
    with pytest.raises(InputError, match=f"the benches differ in {key}: .*{says}"):
        changes(then(), new())


def test_what_does_not_decide_the_speed_may_differ():
    newer = with_facts(kernel="Linux 6.9", python_version="3.13.0", memory_bytes=1 << 33)
    assert changes(then(), with_context(newer, block_runs=40, started_at="2026-02-01T00:00:00+00:00")).changes


def test_another_baseline_and_no_common_model_are_refused():
    other = now()
    changed = [other.variants[0].model_copy(update={"sha256": OTHER}), other.variants[1]]
    with pytest.raises(InputError, match=r"the baselines are two files, dense .*measure both against one and the same"):
        changes(then(), other.model_copy(update={"variants": changed}))
    renamed = [other.variants[0], other.variants[1].model_copy(update={"name": "tiny"})]
    with pytest.raises(InputError, match="no model has the same name in both: compact then, tiny now"):
        changes(then(), other.model_copy(update={"variants": renamed}))


def test_a_bench_without_the_pairs_is_refused():
    bench = now()
    for pairs in (bench.pairs[:1], []):
        with pytest.raises(InputError, match="expected two pairs or more of compact against dense, found"):
            changes(then(), bench.model_copy(update={"pairs": pairs}))


def test_the_gate_wants_the_whole_interval():
    assert "gate holds: compact takes 1.0" in judge(changes(then(), now()), 1.02)
    with pytest.raises(CheckFailed, match=r"gate fails: compact takes 1\.1\d\d of its old time"):
        judge(changes(then(), now(ratio=1.8)), 1.02)
    with pytest.raises(
        Inconclusive, match=r"gate is undecided: compact takes .*, the limit is 1.02; measure both with \d+ pairs"
    ):
        judge(changes(then(), now(ratio=1.96, noise=0.5)), 1.02)


def test_the_summaries_are_markdown_with_everything_escaped():
    hostile = "a|b<script>@x\n# c"
    bench = now()
    variants = [bench.variants[0], bench.variants[1].model_copy(update={"name": hostile})]
    comparison = bench.comparisons[0].model_copy(update={"variant": hostile})
    page = bench_summary(bench.model_copy(update={"variants": variants, "comparisons": [comparison]}), "gate holds: x")
    assert page.startswith("### rankfold: gate holds: x\n")
    found = changes(then(), now())
    change = found.changes[0].model_copy(update={"variant": hostile})
    other = changes_summary(found.model_copy(update={"changes": [change], "only_now": [hostile]}), None)
    for text in (page, other):
        assert "<script>" not in text
        assert "@x" not in text
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
        assert not any(line.startswith("# ") for line in text.splitlines())
