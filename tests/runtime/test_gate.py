from __future__ import annotations

import pytest

from rankfold.errors import CheckFailed, Inconclusive, InputError
from rankfold.records import Bench, Comparison
from rankfold.runtime.gate import Gate, judge, parse

from .conftest import make_bench, quiet_samples


@pytest.fixture(scope="module")
def bench() -> Bench:
    """Dense takes 1.25 to 1.6 times as long as compact."""
    comparison = Comparison(baseline="dense", variant="compact", ratio=1.4, low=1.25, high=1.6, pairs=8)
    made = make_bench(quiet_samples(), couples=2)
    third = made.variants[1].model_copy(update={"name": "third"})
    other = comparison.model_copy(update={"variant": "third"})
    return made.model_copy(update={"comparisons": [comparison, other], "variants": [*made.variants, third]})


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("compact <= 0.8 * dense", Gate("compact", 0.8, "dense")),
        ("compact<=8e-1*dense", Gate("compact", 0.8, "dense")),
        ("compact-0.5.v2 <= dense", Gate("compact-0.5.v2", 1.0, "dense")),
    ],
)
def test_a_claim_is_read(text: str, gate: Gate):
    assert parse(text) == gate


@pytest.mark.parametrize(
    "text", ["", "compact", "compact < dense", "compact <= x * ", "compact <= -1 * dense", "a <= 1.2.3 * b"]
)
def test_other_text_is_refused_with_an_example(text: str):
    with pytest.raises(InputError, match=r'write it as "compact <= 0.8 \* dense"'):
        parse(text)


def test_the_whole_interval_decides(bench: Bench):
    assert "gate holds" in judge(parse("compact <= 0.8 * dense"), bench)
    assert "gate holds" in judge(parse("dense <= 1.6 * compact"), bench)
    with pytest.raises(CheckFailed, match=r"gate fails: compact takes 0\.714 of dense's time \[0\.625, 0\.800\]"):
        judge(parse("compact <= 0.62 * dense"), bench)
    with pytest.raises(CheckFailed, match="gate fails"):
        judge(parse("dense <= 1.2 * compact"), bench)


def test_an_interval_across_the_limit_is_inconclusive_and_says_how_much_more(bench: Bench):
    # half-width ln(1.6 / 1.25) / 2 = 0.123, distance ln(1.4 · 0.75) = 0.049: (0.123 / 0.049)² · 8 = 51.2 pairs
    with pytest.raises(Inconclusive, match=r"about 45 more pairs would decide it, \d+ s longer: .* 53 pairs"):
        judge(parse("compact <= 0.75 * dense"), bench)
    with pytest.raises(Inconclusive, match="move the limit"):
        judge(parse("compact <= 0.7142857 * dense"), bench)


def test_models_that_were_not_compared_are_refused(bench: Bench):
    with pytest.raises(InputError, match="gate names 'small', the bench has dense, compact"):
        judge(parse("small <= 0.8 * dense"), bench)
    with pytest.raises(InputError, match="'compact' and 'third' were not timed against each other"):
        judge(parse("compact <= third"), bench)
