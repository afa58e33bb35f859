"""Bounds on what was counted, and what counts are not of."""

from __future__ import annotations

import re

import pytest

from rankfold.devices import card
from rankfold.devices.counting import Counted
from rankfold.errors import CheckFailed, InputError
from rankfold.export.instructions import layer_counts
from rankfold.records import Cost, ModelCount
from rankfold.runtime.counts import Counting, judge
from rankfold.runtime.turns import Options

from ..conftest import SOAK
from ..emulation import counter
from .conftest import FACTS, SHA, save_convolution


def cost(instructions: int = 1_000_000, **changes: object) -> Cost:
    model = {"name": "net", "file": "net.onnx", "sha256": SHA, "macs": None, "multiplying": 1, "multiply_adds": 4}
    models = [ModelCount.model_validate(model | {"instructions": instructions})]
    told = {"device": "qemu-cortex-a72", "facts": FACTS, "qemu_version": "7.2.22", "input_shapes": {}}
    return Cost.model_validate(told | {"models": models} | changes)


def test_what_is_within_bounds_passes():
    judge(cost(), None, None)
    judge(cost(), 1_000_000, cost(999_500))
    judge(cost(), None, cost(2_000_000))


def test_more_than_is_allowed_fails_with_both_numbers():
    with pytest.raises(CheckFailed, match="net: 1,000,000 instructions on qemu-cortex-a72, allowed 999,999"):
        judge(cost(), 999_999, None)
    with pytest.raises(CheckFailed, match=r"net: 1,002,000 instr.*, 0\.20% more than the 1,000,000 before"):
        judge(cost(1_002_000), None, cost())


def test_counts_of_unlike_things_do_not_compare():
    other = FACTS.model_copy(update={"onnxruntime_version": "1.0.0"})
    with pytest.raises(InputError, match=r"unlike things do not compare: onnxruntime_version was 1\.0\.0, is"):
        judge(cost(), None, cost(facts=other))
    with pytest.raises(InputError, match="give the same --shape again"):
        judge(cost(), None, cost(input_shapes={"x": [2, 3]}))
    renamed = [one.model_copy(update={"name": "old"}) for one in cost().models]
    with pytest.raises(InputError, match="net was not counted before, only old"):
        judge(cost(), None, cost(models=renamed))


def test_a_real_board_is_not_counted_on(call, convolution):
    with pytest.raises(
        InputError, match="instructions are counted on qemu-… alone, not on 'host'; name one, or use rankfold bench"
    ):
        Counting(card.find("host"), Options())
    code, _, error = call(f"cost {convolution} --device host")
    assert (code, error.count("\n")) == (2, 1)


@pytest.mark.parametrize("text", ["many", "-3", "0", "nan", "1T", "1e99"])
def test_a_bound_is_a_number_of_instructions(call, convolution, text):
    code, _, error = call(f"cost {convolution} --at-most={text}")
    assert code == 2
    assert re.fullmatch(rf"rankfold: --at-most '{text}': expected a number of instructions, such as .*\n", error)


@pytest.mark.skipif(not SOAK, reason="five emulated processes: in soak")
def test_the_command_counts_models_and_layers(call, tmp_path):
    counter("qemu-cortex-a72")
    model = save_convolution(tmp_path / "net.onnx", channels=16)
    code, said, error = call(f"cost {model} --layers -o {tmp_path / 'cost.json'} --at-most 1k")
    assert (code, error.count("\n")) == (1, 1)
    assert "a proxy for time" in said
    (found,) = Cost.read(tmp_path / "cost.json").models
    (layer,) = found.layers
    assert found.macs == found.multiply_adds == layer.macs == layer.multiply_adds == 16 * 3 * 9 * 256
    assert layer.name == "conv"
    assert 0.5 < layer.instructions / found.instructions < 1
    assert call(f"cost {model} --against {tmp_path / 'cost.json'}")[0] == 0


def test_layers_are_counted_without_their_neighbours(convolution):
    """A count that is the file's own size: what is around the layer goes off, and alike ones are counted once."""
    asked: list[int] = []

    def sizes(paths):
        found = [path.stat().st_size for path in paths]
        asked.extend(found)
        return [Counted(size, size, size) for size in found]

    (layer,) = layer_counts(convolution, sizes)
    assert (layer.name, layer.macs) == ("conv", 8 * 3 * 9 * 256)
    whole, *around = asked
    assert layer.instructions == round(whole - sum(around) / len(around)) > 0
