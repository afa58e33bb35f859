"""write_report: what is read, what is refused, what is joined, and that the same input gives the same bytes."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rankfold.errors import InputError
from rankfold.records import Bench, Evaluation, Moment, OperatorTable, OperatorTime, Paced, Parity, Sustained
from rankfold.runtime.report import write_report

from . import samples

_FILES = ("report.html", "report.md", "report.csv", "dashboard.json")


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    return samples.comparison_folder(tmp_path)


def text(page: Path) -> str:
    """The page's words without its markup and styles."""
    body = page.read_text(encoding="utf-8").split("</style>")[1]
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def test_comparison_folder_gives_all_four_files(comparison: Path) -> None:
    page = write_report(comparison)
    assert page == comparison / "report.html"
    assert all((comparison / name).stat().st_size > 500 for name in _FILES)


def test_the_answer_comes_first(comparison: Path) -> None:
    words = text(write_report(comparison))
    order = ["2.31×", "2.30–2.32", "faster", "96.2 %", "95.7 %", "402 kB", "Variants", "Latency distribution"]
    order += ["all of it realised", "Accuracy against latency", "Layers of compact", "Channel groups of compact"]
    order += ["Parity", "Training", "Cautions", "Context", "Commands", "rankfold report ."]
    found = [words.find(word) for word in order]
    assert found == sorted(found)
    assert found[0] >= 0


def test_what_was_asked_for_beside_the_pairs_is_on_the_page(comparison: Path) -> None:
    path = comparison / "bench.json"
    bench = Bench.read(path)
    weather = bench.context.weather_before.model_copy(update={"temperatures_c": {"cpu": 71.4}})
    moments = [Moment(at_s=float(at_s), run_s=1e-3 * (1 + at_s / 20), weather=weather) for at_s in range(20)]
    node = OperatorTime(name="n", op="Conv<b>", provider="cpu", layer="conv|1", samples_s=[1e-4, 1e-4])
    more = {
        "paced": [Paced(variant="compact", rate_hz=30, samples_s=[1e-3], responses_s=[0.05], dropped=2)],
        "sustained": [Sustained(variant="compact", moments=moments)],
        "operators": [OperatorTable(variant="compact", runs_s=[2e-4, 2e-4], nodes=[node])],
    }
    bench.model_copy(update=more).write(path)
    words = text(write_report(comparison))
    assert "Under load, and where the time goes" in words
    assert re.search(r"compact 30 3 3 2 50\.0 ms", words), words
    assert re.search(r"compact 19 1\.\d\d\d 71", words)
    assert "Conv&lt;b&gt; 100.0 100.0" in words
    assert "all nodes 50.0% of a profiled run" in words
    assert "--rate 30 --sustain 19 --operators" in words
    assert "conv\\|1" in (comparison / "report.md").read_text()


def test_run_folder_gives_plan_and_training_to_compact(tmp_path: Path) -> None:
    words = text(write_report(samples.run_folder(tmp_path)))
    assert "Layers of compact" in words
    assert "Layers of dense" not in words
    assert "dec3 &lt;glyphs&gt;" in words
    assert (
        "rankfold train recipe.toml --seed 0 --out . rankfold export . rankfold evaluate . rankfold bench dense.onnx"
        in words
    )


def test_the_frontier_is_drawn_with_what_lies_beyond_it(comparison: Path) -> None:
    words = text(write_report(comparison))
    assert "Harm against measured time" in words
    assert "Judged on 256 inputs that they were not fitted to. Beyond the axis: 3." in words


def test_the_explanation_is_drawn_for_the_file_that_it_is_of(comparison: Path) -> None:
    words = text(write_report(comparison))
    assert "Where the time went" in words
    assert "ranks off the tile +0.4" in words
    assert "not explained +0.03" in words
    assert "it takes 1.39" in words
    assert "16 launches" in words
    assert "Worth making next: ranks off the tile, 0.3 ms." in words
    path = comparison / "models/compact.explanation.json"
    found = samples.explanation()
    found.model_copy(update={"second": found.first}).write(path)
    assert "Where the time went" not in text(write_report(comparison))


def test_a_compressed_file_brings_its_own_records(tmp_path: Path) -> None:
    """`rankfold compress net.onnx -o compact.onnx --frontier`, then bench and report in the same folder."""
    samples.bench(("dense", "compact")).write(tmp_path / "bench.json")
    samples.plan().write(tmp_path / "compact.plan.json")
    samples.frontier().write(tmp_path / "compact.frontier.json")
    words = text(write_report(tmp_path))
    assert "Layers of compact" in words
    assert "Harm against measured time" in words


def test_same_input_gives_the_same_bytes(comparison: Path, tmp_path: Path) -> None:
    first = {name: (write_report(comparison).parent / name).read_bytes() for name in _FILES}
    out = tmp_path / "again"
    out.mkdir()
    write_report(comparison / "bench.json", out)
    assert {name: (out / name).read_bytes() for name in _FILES} == first


def test_a_single_model_is_not_compared(tmp_path: Path) -> None:
    samples.bench(("dense",)).model_copy(update={"pairs": []}).write(tmp_path / "bench.json")
    page = write_report(tmp_path)
    assert "not compared" in text(page)
    assert "not measured" in text(page)
    assert "<figure>" not in page.read_text(encoding="utf-8")


def test_a_model_measured_alone_shows_its_latency(tmp_path: Path) -> None:
    """Its pairs name it twice and hold its blocks only."""
    pairs = [samples.pair("dense", "dense", seed) for seed in range(3)]
    samples.bench(("dense",)).model_copy(update={"pairs": pairs}).write(tmp_path / "bench.json")
    words = text(write_report(tmp_path))
    assert "3.21 ms, p50 not compared measured alone" in words
    assert "×" not in words.split("Variants")[0]


@pytest.mark.parametrize(("low", "high", "why"), [(0.98, 1.01, "contains 1"), (0.95, 0.98, "lies below 1")])
def test_no_gain_is_said_with_its_reason(tmp_path: Path, low: float, high: float, why: str) -> None:
    bench = samples.bench(("dense", "compact"))
    slow = bench.comparisons[0].model_copy(update={"ratio": (low + high) / 2, "low": low, "high": high})
    bench.model_copy(update={"comparisons": [slow]}).write(tmp_path / "bench.json")
    words = text(write_report(tmp_path))
    assert "no gain on this device" in words
    assert why in words
    assert "faster" not in words.split("Variants")[0]


def test_an_end_of_the_interval_is_never_rounded_onto_1(tmp_path: Path) -> None:
    bench = samples.bench(("dense", "compact"))
    close = bench.comparisons[0].model_copy(update={"ratio": 1.004, "low": 1.0007, "high": 1.0073})
    bench.model_copy(update={"comparisons": [close]}).write(tmp_path / "bench.json")
    assert "1.0007–1.0073" in text(write_report(tmp_path))


def test_ratios_come_from_comparisons_alone(comparison: Path) -> None:
    bench = samples.bench()
    told = [c.model_copy(update={"ratio": 7.5, "low": 7.4, "high": 7.6}) for c in bench.comparisons]
    bench.model_copy(update={"comparisons": told}).write(comparison / "bench.json")
    words = text(write_report(comparison))
    assert "7.50×" in words
    assert "2.31" not in words


def test_a_score_of_another_file_counts_as_not_measured(comparison: Path) -> None:
    scores = samples.evaluation().scores
    scores[3] = scores[3].model_copy(update={"model_sha256": "0" * 64})
    Evaluation(scores=scores).write(comparison / "evaluation.json")
    write_report(comparison)
    rows = csv_rows(comparison)
    assert [row["metric_value"] for row in rows if row["variant"] == "compact"] == [""]
    assert [row["metric_value"] for row in rows if row["variant"] == "dense"] == ["0.962"]
    words = text(comparison / "report.html")
    assert "96.2 % 95.6–96.8 → not measured" in words
    assert "evaluation.json scores a" in words


def test_unlike_splits_never_stand_side_by_side(comparison: Path) -> None:
    odd = samples.score("compact", 0.5).model_copy(update={"split": "validation"})
    test = [samples.score(name) for name in samples.MODELS if name != "compact"]
    Evaluation(scores=[odd, *test]).write(comparison / "evaluation.json")
    words = text(write_report(comparison))
    assert "96.2 % 95.6–96.8 → not measured" in words
    assert "50.0 %" not in words


def test_missing_numbers_are_said_never_0(comparison: Path) -> None:
    bench = samples.bench()
    bare = [launch.model_copy(update={"peak_rss_bytes": None}) for launch in bench.variants[3].launches]
    bench.variants[3] = bench.variants[3].model_copy(update={"launches": bare, "macs": None, "parameters": None})
    short = [samples.pair("dense", name, 0, blocks=2) for name in samples.MODELS if name != "dense"]
    bench.model_copy(update={"pairs": short}).write(comparison / "bench.json")
    words = text(write_report(comparison))
    assert words.count("too few") == 5 + 6 + 1  # p90 of all but dense, p99 of all, and the line below
    assert "Not measured: compact." in words
    rows = csv_rows(comparison)
    compact = next(row for row in rows if row["variant"] == "compact")
    assert [compact[key] for key in ("p99_s", "peak_rss_bytes", "macs", "parameters")] == [""] * 4
    assert {entry["name"] for entry in dashboard(comparison)}.isdisjoint({"compact: peak memory"})


def csv_rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "report.csv").read_text(encoding="utf-8").splitlines()))


def dashboard(folder: Path) -> list[dict[str, object]]:
    return json.loads((folder / "dashboard.json").read_text(encoding="utf-8"))


def test_dashboard_rows_are_smaller_is_better(comparison: Path) -> None:
    write_report(comparison)
    entries = dashboard(comparison)
    assert all({"name", "unit", "value"} <= set(e) <= {"name", "unit", "value", "range", "extra"} for e in entries)
    relative = next(e for e in entries if e["name"] == "compact: relative latency")
    assert relative["value"] == pytest.approx(1.39 / 3.21)


def test_failed_parity_is_a_caution(comparison: Path) -> None:
    check = samples.parity().checks[0].model_copy(update={"relative": 0.3, "passed": False})
    Parity(checks=[check]).write(comparison / "models/compact.parity.json")
    words = text(write_report(comparison))
    assert "Parity failed for &#39;compact&#39;" in words
    assert "FAILED" in words


def test_rivals_are_named(comparison: Path) -> None:
    words = text(write_report(comparison, headline="dense-16-48-96"))
    assert "At least as fast and at least as accurate, by point estimates: compact, low-rank." in words


def test_headline_falls_to_the_fastest_with_a_plan(comparison: Path) -> None:
    names = ("dense", "dense-24-48-96", "low-rank", "dense-svd")
    samples.bench(names).write(comparison / "bench.json")
    assert "low-rank against dense on host" in text(write_report(comparison))


def test_a_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    samples.plan().write(tmp_path / "secret.plan.json")
    folder = tmp_path / "comparison"
    (folder / "models").mkdir(parents=True)
    bench = samples.bench(("dense", "compact"))
    bench.variants[1] = bench.variants[1].model_copy(update={"name": "../../secret", "file": "../../secret.onnx"})
    bench.model_copy(update={"pairs": [], "comparisons": []}).write(folder / "bench.json")
    assert "Layers of" not in text(write_report(folder))


def test_bad_input_is_one_line(comparison: Path) -> None:
    with pytest.raises(InputError, match="headline 'tiny' is no variant beside the baseline; choose one of: dense-24"):
        write_report(comparison, headline="tiny")
    with pytest.raises(InputError, match=r"expected a folder or a name that ends in \.html"):
        write_report(comparison, comparison / "report.pdf")
    with pytest.raises(InputError, match=r"cannot read .*bench\.json"):
        write_report(comparison / "models")
    (comparison / "evaluation.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"evaluation\.json: expected JSON"):
        write_report(comparison)


def test_emulators_yield_no_latency(tmp_path: Path) -> None:
    bench = samples.bench(("dense", "compact"))
    facts = bench.context.facts.model_copy(update={"emulated": True})
    bench.model_copy(update={"context": bench.context.model_copy(update={"facts": facts})}).write(tmp_path / "b.json")
    with pytest.raises(InputError, match="under an emulator, which yields no latency"):
        write_report(tmp_path / "b.json")


def test_unusable_variants_are_refused(tmp_path: Path) -> None:
    bench = samples.bench(("dense", "compact"))
    bench.model_copy(update={"variants": []}).write(tmp_path / "none.json")
    with pytest.raises(InputError, match="expected at least one variant, found none"):
        write_report(tmp_path / "none.json")
    bench.model_copy(update={"variants": bench.variants[:1] * 2}).write(tmp_path / "twice.json")
    with pytest.raises(InputError, match="variant 'dense' appears twice"):
        write_report(tmp_path / "twice.json")


def test_nothing_is_written_when_something_is_refused(comparison: Path) -> None:
    (comparison / "models/compact.plan.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"compact\.plan\.json: 'tile'"):
        write_report(comparison)
    assert not any((comparison / name).exists() for name in _FILES)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    page = write_report(samples.hostile_folder(tmp_path)).read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 20
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    outside = markdown.split("```")[0]
    assert "<script" not in outside
    variants = outside.split("## Variants")[1].split("##")[0].strip().splitlines()
    assert len(variants) == 4  # head, rule, dense, the hostile one: no name may open a row or a cell
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in variants} == {13}


def test_the_code_block_holds_all_commands(tmp_path: Path) -> None:
    """A name with backticks and line breaks must not end the fence early."""
    bench = samples.bench(("dense", "compact"))
    bench.variants[1] = bench.variants[1].model_copy(update={"file": "a\n```\n<b>"})
    bench.write(tmp_path / "bench.json")
    write_report(tmp_path)
    fenced = (tmp_path / "report.md").read_text(encoding="utf-8").split("\n````sh\n")[1].split("\n````\n")
    assert "rankfold report ." in fenced[0]
    assert fenced[1] == ""


def test_importing_the_report_needs_no_jinja2_matplotlib_or_torch() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(["jinja2", "matplotlib", "torch"]))
import rankfold.runtime, rankfold.runtime.report
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=os.sep, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_jinja2_the_remedy_is_named(comparison: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    for name in ("html", "plots", "curves", "svg"):
        monkeypatch.delitem(sys.modules, f"rankfold.runtime.report.{name}", raising=False)
    with pytest.raises(InputError, match=r"pip install 'rankfold\[report\]'"):
        write_report(comparison)
