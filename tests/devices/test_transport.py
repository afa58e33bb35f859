"""Answers from a board are checked before anyone uses them."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
import pytest

from rankfold.devices.transport import Session, checked, outputs, serve, time_block
from rankfold.errors import DeviceError, InputError

BLOCK = {"samples_s": [1e-3, 2e-3], "cpu_s": 3e-3, "steal_s": None, "involuntary_switches": 0}
SESSION = {
    "session_creation_s": 0.1,
    "first_run_s": 0.1,
    "warmup_s": [0.1],
    "baseline_rss_bytes": None,
    "peak_rss_bytes": 1,
    "providers": ["CPUExecutionProvider"],
    "nodes_by_provider": {},
    "input_shapes": {"x": [1, 3]},
}


class Answers:
    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        assert limit_s > 0
        self.requests.append(request)
        return self.answer


def test_good_answers_pass():
    process = Answers(BLOCK)
    assert time_block(process, runs=2, dropped=1, limit_s=1).samples_s == [1e-3, 2e-3]
    assert process.requests == [{"command": "block", "runs": 2, "dropped": 1, "rest": True}]
    assert serve(Answers(SESSION), {}).input_shapes == {"x": [1, 3]}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"samples_s": [1e-3]}, "answered 1 samples to a block of 2"),
        ({"samples_s": [1e-3, math.nan]}, r"malformed: 'samples_s\.1'"),
        ({"samples_s": [1e-3, -1e-3]}, r"malformed: 'samples_s\.1'"),
        ({"samples_s": [1e-3, 0.0]}, r"malformed: 'samples_s\.1'"),
        ({"samples_s": "<script>"}, "malformed: 'samples_s'"),
        ({"steal_s": -1}, "malformed: 'steal_s'"),
        ({"html": "<script>"}, "malformed: unknown key 'html'"),
    ],
)
def test_a_forged_block_is_a_device_error(change: dict[str, Any], match: str):
    with pytest.raises(DeviceError, match=match):
        time_block(Answers({**BLOCK, **change}), runs=2, dropped=0, limit_s=1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"providers": []}, "malformed: 'providers'"),
        ({"warmup_s": []}, "malformed: 'warmup_s'"),
        ({"peak_rss_bytes": 0}, "malformed: 'peak_rss_bytes'"),
        ({"peak_rss_bytes": 10**400}, "malformed: 'peak_rss_bytes'"),
        ({"input_shapes": {"x": [0]}}, r"malformed: 'input_shapes\.x\.0'"),
        ({"providers": ["x" * 1000]}, r"malformed: 'providers\.0'"),
    ],
)
def test_a_forged_session_is_a_device_error(change: dict[str, Any], match: str):
    with pytest.raises(DeviceError, match=match):
        serve(Answers({**SESSION, **change}), {})


TENSOR = {
    "dtype": "float32",
    "shape": [1, 2],
    "base64": base64.b64encode(np.array([1, 2], np.float32).tobytes()).decode(),
}


def test_outputs_arrive_as_they_were():
    (found,) = outputs(Answers({"outputs": [TENSOR]}), "x.npz")
    assert found.dtype == np.float32
    assert found.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dtype": "object"}, r"malformed: 'outputs\.0\.dtype'"),
        ({"shape": [-1]}, r"malformed: 'outputs\.0\.shape\.0'"),
        ({"shape": [1 << 40]}, "answered a tensor that is none .*reshape"),
        ({"dtype": "float64"}, "answered a tensor that is none .*reshape"),
        ({"base64": "<script>"}, "answered a tensor that is none"),
        ({"more": 1}, r"malformed: unknown key 'outputs\.0\.more'"),
    ],
)
def test_forged_outputs_are_a_device_error(change: dict[str, Any], match: str):
    with pytest.raises(DeviceError, match=match):
        outputs(Answers({"outputs": [{**TENSOR, **change}]}), "x.npz")


def test_a_refusal_is_an_input_error_without_terminal_escapes():
    with pytest.raises(InputError, match=r"^no such key \[31m") as caught:
        checked(Session, {"error": "no such key\x1b[31m" + "x" * 9999})
    assert len(str(caught.value)) == 500
