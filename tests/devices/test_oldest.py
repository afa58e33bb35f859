"""board.py with the oldest Python and runtime that a board may have: whatever it answers must be the same."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from rankfold.devices import probe
from rankfold.devices.check import OLDEST_PYTHON
from rankfold.devices.child import ChildProcess
from rankfold.devices.local import BOARD, death
from rankfold.devices.transport import (
    Outfit,
    checked,
    contest,
    load_model,
    outputs,
    pace,
    profile,
    serve,
    time_block,
)

NAMED = "RANKFOLD_OLDEST_PYTHON"
REQUEST = {"threads": 1, "provider": "cpu", "session_config": {}, "cores": [], "seed": 0}


@pytest.fixture(scope="module")
def python() -> str:
    """An interpreter with onnxruntime 1.16, which .ci/run makes."""
    named = os.environ.get(NAMED)
    if not named:
        pytest.skip(f"{NAMED} names no Python 3.8 to 3.11 with onnxruntime 1.16.3 and numpy 1 (.ci/run makes one)")
    return named


def process(python: str) -> ChildProcess:
    return ChildProcess([python, "-I", str(BOARD)], death)


def test_all_that_is_asked_is_answered(python: str, tmp_path: Path):
    model, inputs = tmp_path / "model.onnx", tmp_path / "inputs.npz"
    model.write_bytes(probe.TILE_MODEL)
    np.savez(inputs, x=np.ones((1, 16, 8, 8), np.float32))
    request = {**REQUEST, "model": str(model)}
    with process(python) as board:
        facts = probe.facts(board)
        assert probe.numbers(facts.python_version) >= OLDEST_PYTHON
        assert probe.numbers(facts.onnxruntime_version) == probe.OLDEST_RUNTIME
        assert probe.weather(board).memory_available_bytes
        found = checked(Outfit, board.ask({"command": "outfit", "folder": str(tmp_path)}, 60.0))
        assert found.versions["onnxruntime"] == facts.onnxruntime_version
        load_model(board, request)
        (output,) = outputs(board, str(inputs))
        assert np.all(output == 8.0)
        nodes = profile(board, request, 3, 60.0).nodes
        assert "Conv" in {node.op for node in nodes}
        assert len(contest(board, {**request, "models": [str(model)], "alone": True}, 3, 5.0)[0]) == 3
    with process(python) as board:
        session = serve(board, request)
        assert session.nodes_by_provider == {}, "it cannot say yet"
        assert len(time_block(board, 5, 2, 60.0).samples_s) == 5
        assert pace(board, 100.0, 3).dropped < 3
