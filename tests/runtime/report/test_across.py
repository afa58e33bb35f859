"""One page of several devices: who gains where, what does not fit together, and names that stay text."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankfold.errors import InputError
from rankfold.records import Bench, Caution
from rankfold.runtime.report import write_across

from . import samples
from .test_report import text

RATIOS = {"pi5": 2.0, "zero2w": 0.5, "host": 1.0}


def records(folder: Path, **changes: object) -> list[Path]:
    """Three devices: on the one it is faster, on the next slower, on the last one cannot tell."""
    paths = []
    for device, ratio in RATIOS.items():
        bench = samples.bench(("dense", "compact"))
        told = bench.comparisons[0].model_copy(update={"ratio": ratio, "low": 0.9 * ratio, "high": 1.1 * ratio})
        context = bench.context.model_copy(update={"device": device})
        paths.append(folder / f"bench.{device}.json")
        bench.model_copy(update={"comparisons": [told], "context": context, **changes}).write(paths[-1])
    return paths


def changed(path: Path, **changes: object) -> None:
    bench = Bench.read(path)
    bench.model_copy(update={"context": bench.context.model_copy(update=changes)}).write(path)


def test_who_gains_where(tmp_path: Path):
    hot = Caution(what="it is hot", remedy="cool it")
    page = write_across(records(tmp_path, cautions=[hot]), tmp_path / "lab.html")
    words, markdown = text(page), page.with_suffix(".md").read_text()
    said = "compact is faster on pi5; slower on zero2w; neither, by its interval, on host."
    assert said in words
    assert said in markdown
    assert "zero2w 0.50 0.45–0.55" in words
    assert "| zero2w | **0.50 (0.45–0.55)** |" in markdown
    assert "| host | 3.2" in markdown.split("## Times")[1]
    assert "pi5, zero2w, host: it is hot cool it" in words
    assert "Intel(R) Xeon(R)" in words.split("The devices")[1]


def test_a_model_measured_alone_has_times_only(tmp_path: Path):
    for device in RATIOS:
        bench = samples.bench(("dense",)).model_copy(update={"pairs": [samples.pair("dense", "dense", 0)]})
        bench.write(tmp_path / f"bench.{device}.json")
        changed(tmp_path / f"bench.{device}.json", device=device)
    page = write_across(sorted(tmp_path.glob("bench.*.json")))
    for words in (text(page), page.with_suffix(".md").read_text()):
        assert "Who gains where" not in words
        assert "3.2" in words.split("Times")[1]


def test_hostile_names_stay_text(tmp_path: Path):
    caution = Caution(what=samples.HOSTILE, remedy=samples.HOSTILE)
    paths = records(tmp_path, cautions=[caution])
    for path in paths:
        bench = Bench.read(path)
        bench.variants[1] = bench.variants[1].model_copy(update={"name": samples.HOSTILE})
        bench.comparisons[0] = bench.comparisons[0].model_copy(update={"variant": samples.HOSTILE})
        bench.write(path)
    changed(paths[0], device=samples.HOSTILE, started_at=samples.HOSTILE)
    page = write_across(paths)
    html, markdown = page.read_text(), page.with_suffix(".md").read_text()
    assert "<script" not in html + markdown
    assert html.count("&lt;script&gt;") > 10
    speeds = markdown.split("## Who gains where")[1].split("##")[0].strip().splitlines()
    assert len(speeds) == 5  # head, rule, three devices: no name may open a row


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"device": "pi5"}, r"bench\.host\.json and .*bench\.pi5\.json are both of 'pi5'; give one record a device"),
        ({"threads": 2}, r"bench\.host\.json and .*bench\.pi5\.json differ in threads; measure the same on every"),
        ({"input_shapes": {"image": [1, 1, 64, 64]}}, "differ in input_shapes"),
    ],
)
def test_records_that_do_not_fit_together_are_refused(tmp_path: Path, changes: dict[str, object], match: str):
    paths = records(tmp_path)
    changed(paths[-1], **changes)
    with pytest.raises(InputError, match=match):
        write_across(paths)
    assert not (tmp_path / "report.html").exists()


def test_other_files_of_the_same_name_are_refused(tmp_path: Path):
    paths = records(tmp_path)
    bench = Bench.read(paths[1])
    bench.variants[1] = bench.variants[1].model_copy(update={"sha256": "0" * 64})
    bench.write(paths[1])
    with pytest.raises(InputError, match=r"differ in their files \(sha256\)"):
        write_across(paths)
