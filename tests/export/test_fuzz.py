"""Files from a stranger: whatever is in them, a correct result or one clear line, within bounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from .conftest import average_of_padding, chain, flattened, residual, squeeze_excite
from .mutations import LIMIT_S, LOOSE, MEMORY_BYTES
from .written import LOOP, SHAPES, TOKENS, parsed

_FUZZING = Path(__file__).with_name("fuzzing.py")
SECRET = b"SECRET" * 2000
_LONGEST_LINE = 700  # a path, and two hundred characters of the runtime's own words
_ENDLESS_SHARE = 0.05  # loops with a damaged count; the guard ends them
_KINDS = {"InputError", "CheckFailed"}


@pytest.fixture(scope="session")
def sources(tmp_path_factory) -> Path:
    """A folder with whole models in `sources`, and a file beside it that is nobody's business."""
    work = tmp_path_factory.mktemp("fuzz")
    folder = work / "sources"
    folder.mkdir()
    for build in (chain, residual, flattened, squeeze_excite, average_of_padding):
        onnx.save(build().model, folder / f"{build.__name__}.onnx")
    for name, text in (("tokens", TOKENS), ("shapes", SHAPES), ("loop", LOOP)):
        onnx.save(parsed(text), folder / f"{name}.onnx")
    outside = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 100}
    onnx.save(chain().model, folder / "outside.onnx", **outside)
    (work / "secret.bin").write_bytes(SECRET)
    return work


def _fuzz(work: Path, count: int, seed: int) -> list[dict]:
    """Every case in a guarded child of one fresh interpreter, as `rankfold fold` runs it."""
    command = [sys.executable, str(_FUZZING), str(work), str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def _environment() -> dict[str, str]:
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}


@pytest.fixture(scope="session")
def outcomes(sources, counts) -> list[dict]:
    return _fuzz(sources, counts(63, 1000), seed=0)


def test_damaged_files_get_a_correct_result_or_one_clear_line(outcomes, counts):
    cases = outcomes[:-1]
    assert len(cases) == counts(63, 1000)
    folded = [case for case in cases if "relative" in case]
    refused = [case for case in cases if "relative" not in case]
    assert len(folded) > 0.1 * len(cases), "the damage is too great to try anything but the parser"
    assert len(refused) > 0.1 * len(cases), "the damage is too small"
    for case in folded:
        assert case["relative"] < LOOSE, case
        assert case["new"] == ["out.onnx", "out.parity.json", "out.plan.json"], case
    for case in refused:
        assert case["kind"] in _KINDS, case
        assert "\n" not in case["text"], case
        assert 20 < len(case["text"]) < _LONGEST_LINE, case
        assert case["new"] == [], case


def test_no_damage_reaches_a_defect_of_ours(outcomes):
    assert [case for case in outcomes[:-1] if "please report" in case.get("text", "")] == []


def test_time_and_memory_stay_bounded(outcomes):
    stopped = [case for case in outcomes[:-1] if f"no result within {LIMIT_S:g} s" in case.get("text", "")]
    assert len(stopped) <= _ENDLESS_SHARE * len(outcomes), stopped
    assert outcomes[-1]["peak_bytes"] < MEMORY_BYTES
