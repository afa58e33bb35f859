from __future__ import annotations

from typing import Any, Literal

import pytest
from onnx import TensorProto, helper

from rankfold.devices import card, probe
from rankfold.devices.local import LocalTransport
from rankfold.errors import DeviceError
from rankfold.records import Card, Facts, Weather


@pytest.fixture(scope="module")
def found() -> tuple[Facts, Weather]:
    with LocalTransport().launch() as process:
        return probe.facts(process), probe.weather(process)


def test_the_tile_model_is_what_its_comment_says():
    graph = helper.make_graph(
        [
            helper.make_node(
                "ConstantOfShape", ["s"], ["w"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.5])
            ),
            helper.make_node("Conv", ["x", "w"], ["y"]),
        ],
        "tile",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 8, 8])],
        [helper.make_tensor("s", TensorProto.INT64, [4], [16, 16, 1, 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert model.SerializeToString(deterministic=True) == probe.TILE_MODEL


def test_this_machine_is_probed(found: tuple[Facts, Weather]):
    facts, weather = found
    assert facts.affinity
    assert facts.logical_cores >= len(facts.affinity)
    assert "CPUExecutionProvider" in facts.providers
    assert facts.tile in (4, 8, 16)
    assert (facts.layout == "nchw") == (facts.tile == 4)
    assert not facts.emulated
    assert (weather.memory_available_bytes or 0) < (facts.memory_bytes or 0)
    assert {core.core for core in weather.cores} == set(facts.affinity)


@pytest.mark.parametrize(
    ("layout", "isa", "tile"),
    [
        ("nchwc", ["avx2", "avx512f"], 16),
        ("nchwc", ["avx2"], 8),
        ("nchw", ["asimd"], 4),
        ("nchw", ["avx512f"], 4),
    ],
)
def test_the_tile_follows_from_layout_and_isa(layout: Literal["nchwc", "nchw"], isa: list[str], tile: int):
    assert probe.tile(layout, isa) == tile


def test_a_card_for_another_machine_is_refused(found: tuple[Facts, Weather]):
    host = card.find("host")
    probe.check_card(host, found[0])
    with pytest.raises(DeviceError, match="device 'host' should be riscv64, found"):
        probe.check_card(host.model_copy(update={"expected_architecture": "riscv64"}), found[0])


def test_an_emulated_board_is_refused_unless_its_card_says_what_it_is(found: tuple[Facts, Weather]):
    facts = found[0].model_copy(update={"emulated": True})
    told = {"name": "arm", "about": "", "transport": "ssh", "host": "arm", "tested": "never"}
    with pytest.raises(DeviceError, match=r"'arm' is emulated on another .*, write emulated = true into its card"):
        probe.check_card(Card.model_validate(told), facts)
    probe.check_card(Card.model_validate(told | {"emulated": True}), facts)
    with pytest.raises(DeviceError, match=r"'host' is emulated on another .*; run rankfold natively"):
        probe.check_card(card.find("host"), facts)


class Answers:
    """A process that answers whatever it was given."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        del request, limit_s
        return self.answer


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"logical_cores": "many"}, "malformed: 'logical_cores'"),
        ({"isa": 5}, "malformed: 'isa'"),
        ({"extra": 1}, "malformed: unknown key 'extra'"),
        ({"kernel": None}, "malformed: 'kernel'"),
        ({"memory_bytes": 10**400}, "malformed: 'memory_bytes'"),
        ({"affinity": [-1]}, r"malformed: 'affinity\.0'"),
        ({"onnxruntime_version": "1.15.1"}, r"onnxruntime there is 1\.15\.1, expected 1\.16 or newer"),
    ],
)
def test_malformed_facts_are_a_device_error(found: tuple[Facts, Weather], change: dict[str, Any], match: str):
    answer = found[0].model_dump(exclude={"tile", "layout", "emulated"}) | {"nchwc": True} | change
    with pytest.raises(DeviceError, match=match):
        probe.facts(Answers(answer))
