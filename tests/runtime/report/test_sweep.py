"""A sweep's section of the page: what is drawn of its points, and that what they are called stays text."""

from __future__ import annotations

import re
from pathlib import Path

from rankfold.records import Setting, Sweep, SweepPoint
from rankfold.runtime.report import write_report
from rankfold.runtime.report.sweep import front, sensitivity

from .samples import HOSTILE, MODELS, comparison_folder

GRID: dict[str, list[Setting]] = {"low_rank": [0.0, 0.01, 0.1], "group": [0.0, 0.3]}
PLACES = [(0.0, 0.0), (0.01, 0.0), (0.1, 0.0), (0.0, 0.3), (0.01, 0.3)]


def sweep(**changes) -> Sweep:
    points = [
        SweepPoint(
            name=name,
            run=name,
            settings={"low_rank": low_rank, "group": group},
            validation_accuracy=accuracy,
            validation_low=accuracy - 0.01,
            validation_high=accuracy + 0.01,
            parameters=parameters,
            macs=macs,
        )
        for (name, (_, accuracy, _, macs, parameters)), (low_rank, group) in zip(
            list(MODELS.items())[1:], PLACES, strict=True
        )
    ]
    lost = SweepPoint(
        name="lost", run="lost", settings={"low_rank": 0.1, "group": 0.3}, failure=f"the loss is nan {HOSTILE}"
    )
    dense = MODELS["dense"]
    told = Sweep(recipe="my.toml", grid=GRID, dense_macs=dense[3], dense_parameters=dense[4], points=[*points, lost])
    return told.model_copy(update=changes)


def test_the_section_has_sizes_sensitivity_ranks_and_failures(tmp_path: Path) -> None:
    folder = comparison_folder(tmp_path)
    sweep().write(folder / "sweep.json")
    html = write_report(folder).read_text(encoding="utf-8")
    for title in ("Accuracy against MACs", "Accuracy against parameters", "Sensitivity to low_rank and group"):
        assert f"<h3>{title}</h3>" in html
    assert "Ranks of all runs" in html
    cells = re.findall(r"<title>(low_rank [\d.]+, group [\d.]+: [^<]*)</title>", html)
    assert len(cells) == 6
    assert {"low_rank 0.01, group 0.3: 87.1 %", "low_rank 0.1, group 0.3: – %"} <= set(cells)
    strengths = [float(s) for s in re.findall(r'class="heat" fill-opacity="([\d.]+)"', html)]
    assert (min(strengths), max(strengths)) == (0, 0.6)
    assert "lost: the loss is nan &lt;script&gt;" in html
    assert "<script" not in html


def test_a_map_for_each_pair_of_keys_that_vary() -> None:
    seeds = [p.model_copy(update={"settings": {**p.settings, "seed": i % 2}}) for i, p in enumerate(sweep().points)]
    three = list(sensitivity(sweep(points=seeds, grid={**GRID, "seed": [0, 1]})))
    pairs = ["low_rank and group", "low_rank and seed", "group and seed"]
    assert [figure.title for figure in three] == [f"Sensitivity to {pair}" for pair in pairs]
    assert "Means over seed." in three[0].caption
    alone = [p.model_copy(update={"settings": {"low_rank": p.settings["low_rank"]}}) for p in sweep().points]
    (one,) = sensitivity(sweep(points=alone, grid={"low_rank": GRID["low_rank"]}))
    assert (one.title, one.drawing.count("<rect")) == ("Sensitivity to low_rank", 3)
    assert "low_rank 0.01: 90.6 %" in one.drawing
    hostile = [p.model_copy(update={"settings": {HOSTILE: HOSTILE if p.macs else "x"}}) for p in sweep().points]
    (drawn,) = sensitivity(sweep(points=hostile, grid={HOSTILE: [HOSTILE, "x"]}))
    assert "<script" not in drawn.drawing
    assert not list(sensitivity(sweep(grid={"low_rank": [0.0]})))


def test_the_front_is_what_no_smaller_network_equals() -> None:
    assert front([(3, 0.9), (1, 0.5), (2, 0.9), (4, 0.95), (2, 0.7), (5, 0.95)]) == {1, 2, 3}
