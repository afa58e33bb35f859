"""The ablation: how strengths are chosen, one network from random weights to its row, and what rows say."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from rankfold.benchmarks import ablation
from rankfold.benchmarks.ablated import SIZES, markdown, to_curve
from rankfold.benchmarks.ablation import QUESTIONS, candidates, choose, grid, key, row_of, shapes_of
from rankfold.benchmarks.arms import DENSE, GROUPS, HALF, NARROW, SVD, Family, Network, Strengths
from rankfold.errors import CheckFailed
from rankfold.records import AblationRow
from rankfold.train.trainer import CHECKPOINT

from ..conftest import SOAK

TINY = Family(widths=(32, 32, 32), narrow=((16, 16, 32),), shares=(0.8, 0.8, 0.8), macs=(0.9, 0.9, 0.9), epochs=1)
PARAMETERS, _, TIME = SIZES.values()


def row(network: Network, accuracy: float, **changed) -> AblationRow:
    """A row as if it had been trained."""
    regularizer = network.training.recipe.regularizer
    made = AblationRow(
        arm=network.arm,
        point=network.point,
        finish=network.finish,
        seed=network.seed,
        config_hash=network.config_hash,
        low_rank=regularizer.low_rank if regularizer else 0,
        group=regularizer.group if regularizer else 0,
        rate=None if network.finish == "none" else network.rate,
        epochs=network.epochs,
        parameters=1000,
        macs=1000,
        validation_accuracy=accuracy,
        test_accuracy=accuracy,
        n=100,
        train_s=1,
    )
    return made.model_copy(update=changed)


def test_strengths_are_chosen_one_after_the_other_by_validation_alone():
    best = Strengths(low_rank=0.012, group=0.15, both=0.002, rate=0.1)
    rows: dict[tuple[str, int], AblationRow] = {}
    asked: list[Network] = []

    def train(networks):
        asked.extend(networks)
        for network in networks:
            spec = network.training.recipe.regularizer
            wanted = {
                "low rank": spec and spec.low_rank == best.low_rank,
                "groups": spec and spec.group == best.group,
                "both": spec and (spec.low_rank, spec.group) == (best.both, best.group),
                "post-hoc SVD": network.rate == best.rate,
            }[network.arm]
            rows[key(network)] = row(network, 0.9 if wanted else 0.8, test_accuracy=None)

    assert choose(HALF, rows, train) == best
    assert len(asked) == sum(len(values) for *_, values in QUESTIONS)
    assert {network.seed for network in asked} == {0}
    assert choose(HALF, rows, lambda networks: asked.extend(networks)) == best
    assert len(asked) == len(rows)
    with pytest.raises(CheckFailed, match="choose 'low_rank' by, found none"):
        choose(HALF, {}, lambda _: None)


def test_the_grid_has_all_of_a_seed_before_the_next_and_no_row_twice():
    networks = grid(HALF, Strengths(), [0, 1], [])
    assert len({key(network) for network in networks}) == len(networks)
    main = [network for network in networks if network.finish in ("none", "distilled") and not network.taught]
    assert [network.seed for network in main] == sorted(network.seed for network in main)
    assert networks[-1].taught
    assert {network.arm for network in grid(HALF, Strengths(), [0], [GROUPS])} == {GROUPS}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (40, 8, 8, 3), np.uint8), random.integers(0, 4, 40)
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10])
    return path


@pytest.mark.skipif(not SOAK, reason="three trainings and exports: in soak")
def test_one_network_from_random_weights_to_its_row(data, tmp_path):
    steps: list[str] = []
    plain, tuned, taught = (
        TINY.compressed(SVD, 1, Strengths(), "none", 1),
        TINY.compressed(SVD, 1, Strengths(), "distilled", 1),
        TINY.taught(Strengths(), 1)[0],
    )
    rows = [
        row_of(network, data, tmp_path, lambda what, now: steps.append(what), test=network is not plain)
        for network in (plain, tuned, taught)
    ]
    assert steps == ["training", *["fine-tuned, distilled"] * 8, *["taught"] * 9]
    assert rows[0].test_accuracy is None
    assert rows[1].test_accuracy in {n / 10 for n in range(11)}
    assert rows[0].macs == rows[1].macs > rows[2].macs
    files = [network.file(tmp_path) for network in (plain, tuned, taught)]
    assert shapes_of(files[0]) == shapes_of(files[1]) != shapes_of(files[2])  # fine-tuning changes no time
    assert files[0].read_bytes() != files[1].read_bytes()

    again = row_of(tuned, data, tmp_path, lambda what, now: steps.append("again"), test=True)
    assert again == rows[1]
    assert "again" not in steps
    assert (tuned.file(tmp_path).parent / CHECKPOINT).exists()


def test_differences_are_of_the_same_seed_and_finish_at_equal_size():
    """Each seed has a level of its own, which must cancel; the curve rises by 0.1 for each doubling."""
    found = Strengths()
    rows = []
    for seed, level in enumerate((0.5, 0.6, 0.1)):
        dense, *narrow = (
            HALF.whole(DENSE, HALF.widths, found, "none", seed),
            *(HALF.whole(NARROW, widths, found, "none", seed) for widths in HALF.narrow[:2]),
        )
        rows += [
            row(dense, level + 0.2, parameters=4000, speedup=1.0, low=1.0, high=1.0),
            row(narrow[0], level + 0.1, parameters=2000, speedup=2.0, low=2.0, high=2.0),
            row(narrow[1], level, parameters=1000, speedup=4.0, low=4.0, high=4.0),
            row(HALF.whole(NARROW, HALF.narrow[2], found, "none", seed), 0, parameters=900, speedup=3.0),
            row(HALF.whole(NARROW, HALF.narrow[0], found, "labels", seed), 1, parameters=2000, speedup=2.0),
        ]
    small = [
        row(HALF.compressed(GROUPS, 0, found, "none", seed), level + 0.18, parameters=2000, speedup=8**0.5)
        for seed, level in enumerate((0.5, 0.6, 0.1))
    ]
    curve = [one for one in rows if one.arm in (DENSE, NARROW)]
    assert to_curve(small, curve, PARAMETERS) == pytest.approx([0.08] * 3)
    assert to_curve(small, curve, TIME) == pytest.approx([0.13] * 3)
    slow = [one.model_copy(update={"speedup": None}) for one in small]
    assert to_curve(slow, curve, TIME) == []
    tiny = [one.model_copy(update={"parameters": 10}) for one in small]
    assert to_curve(tiny, curve, PARAMETERS) == []
    line = next(line for line in markdown([*rows, *small]).splitlines() if line.startswith("| groups"))
    assert line.split(" | ")[3] == "3"
    assert "| -2.00 ± 0.00 |" in line
    assert line.endswith("| +13.00 ± 0.00 |")


def test_show_tells_what_was_tried_and_draws(tmp_path, monkeypatch, capsys):
    found = Strengths(low_rank=0.005, group=0.25, both=0.005, rate=0.03)
    tries = [n for question in QUESTIONS for n in candidates(question, HALF, found)]
    rows = {key(n): row(n, 0.3, test_accuracy=None) for n in tries}
    rows |= {key(n): row(n, 0.9, speedup=1.5, low=1.4, high=1.6) for n in grid(HALF, found, [0, 1], [])}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(one.model_dump_json() + "\n" for one in rows.values()))
    monkeypatch.setattr(sys, "argv", ["ablation", "show", "--results", str(path), "--seeds", "0", "1"])
    ablation.main()
    said = capsys.readouterr().out
    assert "| both, 0.4 of the MACs | 0.005 | 0.25 |  | 90.00 | chosen |" in said
    assert said.count("| chosen |") == len(QUESTIONS)
    assert "| low rank | 0.4 of the parameters | as it is | 2 |" in said
    assert path.with_suffix(".svg").stat().st_size > 10_000
