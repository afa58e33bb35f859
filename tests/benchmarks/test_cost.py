"""The benchmark of what proximal steps cost: each way is measured, its rows are kept and shown."""

from __future__ import annotations

import sys

from rankfold.benchmarks import cost
from rankfold.benchmarks.rows import read
from rankfold.records import CostRow
from rankfold.train.proximal import SOLVERS


def test_every_way_gets_a_row_and_widths_rows_of_their_own(tmp_path, monkeypatch, capsys):
    results = tmp_path / "cost.jsonl"
    words = ["cost", "run", "dec3", "--widths", "4-4-4", "8-8-8", "--size", "8", "--batch", "2", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", [*words, "--results", str(results)])
    cost.main()
    rows = read(results, CostRow)
    assert [(row.network, row.way) for row in rows] == [
        (f"dec3 {widths}", way) for widths in ("4-4-4", "8-8-8") for way in (*SOLVERS, "steered")
    ]
    assert all(row.low <= row.ratio <= row.high and row.rounds == 2 for row in rows)
    monkeypatch.setattr(sys, "argv", ["cost", "show", "--results", str(results)])
    capsys.readouterr()
    cost.main()
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)


def test_a_share_is_told_with_its_interval():
    row = CostRow(
        network="n", way="gram", batch=2, size=8, machine="m", step_s=0.1, proximal_s=0.05,
        ratio=0.5, low=0.4, high=0.6, rounds=3,
    )  # fmt: skip
    assert cost.markdown([row]).splitlines()[2] == (
        "| n | m | 2 | 100 ms | gram | 50 ms | 2.50 % (2.00 % to 3.00 %) | 0.50 % |"
    )
