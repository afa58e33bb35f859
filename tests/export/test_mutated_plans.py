"""Plans that were damaged or changed by hand: a model that runs, or one clear line."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from rankfold.errors import CheckFailed, InputError
from rankfold.export.compress import Job
from rankfold.export.parity import run
from rankfold.export.wish import Wish
from rankfold.records import Plan

from .nets import Net

NUMBERS = (-1, 0, 1, 2, 5, 24, 25, 10**6, 2**63, 0.5, -0.0, 1e300)
OTHERS = (
    None,
    True,
    "",
    "channel",
    "tucker-2",
    "spatial",
    "dense",
    "a",
    "fc",
    "\x1b[31m",
    "../x",
    [],
    {},
    [1],
    [2, 2],
    [0],
    [1, 2, 3],
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model and a good plan for it."""
    folder = tmp_path_factory.mktemp("plans")
    net = Net(channels=3, spatial=(8, 8))
    x = net.block(net.block("input", "a", 16), "b", 24)
    onnx.save(net.model(net.head(x)), folder / "net.onnx")
    Job(Wish(macs=0.6)).into(folder, folder / "net.onnx", "good.onnx")
    return folder


def mutated(plan: dict[str, Any], rng: random.Random) -> str:
    """The plan's JSON with a value, a key or a few characters changed."""
    plan = copy.deepcopy(plan)
    for _ in range(rng.choice((1, 1, 2))):
        layer = plan["layers"][rng.choice(list(plan["layers"]))]
        target = rng.choice((layer, layer, layer, plan, plan["layers"], plan["groups"]))
        if not target:
            continue
        key = rng.choice(("form", "ranks", *target)) if target is layer else rng.choice(list(target))
        change = rng.randrange(5)
        if change == 0:
            target.pop(key, None)
        elif change == 1:
            target[rng.choice(("x", "fc", "rank", key + "2"))] = target.get(key)
        elif change == 2 and key == "ranks":
            target[key] = [rng.choice(NUMBERS) for _ in range(rng.randrange(4))]
        else:
            target[key] = rng.choice(NUMBERS + OTHERS)
        if not plan.get("layers") or not isinstance(plan["layers"], dict) or not isinstance(plan.get("groups"), dict):
            break
        if not all(isinstance(found, dict) for found in plan["layers"].values()):
            break
    text = json.dumps(plan)
    if rng.random() < 0.15:
        start = rng.randrange(len(text))
        text = text[:start] + rng.choice(("", "9", '"', "{", "NaN")) + text[start + rng.randrange(3) :]
    return text


def test_two_hundred_damaged_plans(place):
    rng, good, made, refused = random.Random(4), json.loads((place / "good.plan.json").read_text()), 0, 0
    inputs = {"input": np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    for number in range(200):
        folder = place / str(number)
        folder.mkdir()
        path = folder / "plan.json"
        path.write_text(mutated(good, rng))
        try:
            names = Job(Wish(plan=Plan.read(path))).into(folder, place / "net.onnx", "small.onnx")
        except (InputError, CheckFailed) as error:
            refused += 1
            message = str(error)
            assert message.strip()
            assert "\n" not in message
            assert len(message) < 500, message
            assert not (folder / "small.onnx").exists()
            continue
        made += 1
        assert names[-1] == "small.onnx"
        assert run((folder / "small.onnx").read_bytes(), inputs)[0].shape == (2, 5)
    assert made > 10
    assert refused > 100
