"""The rounding experiment's own parts: files that are no dearer and on the tile, and what the runtime makes of them."""

from __future__ import annotations

import onnx
import pytest

from rankfold.benchmarks import rounding
from rankfold.benchmarks.command import stopwatch_here
from rankfold.benchmarks.planted import network, odd_widths

TILE = 16


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounding")
    found = {way: folder / f"{way}.onnx" for way in ("dense", "unaligned", "aligned", "cured")}
    onnx.save(network(32, 8, 0), found["dense"])
    onnx.save(odd_widths(32, 8, 0, TILE), found["unaligned"])
    rounding._aligned(found["dense"], rounding._macs(found["unaligned"]), TILE, found["aligned"])
    rounding._cured(found["dense"], found["unaligned"], TILE, found["cured"])
    return found


def test_the_aligned_file_has_no_more_macs_and_its_channels_on_the_tile(paths):
    assert rounding._macs(paths["aligned"]) <= rounding._macs(paths["unaligned"]) < rounding._macs(paths["dense"])
    weights = [entry for entry in onnx.load(paths["aligned"]).graph.initializer if len(entry.dims) == 4]
    assert len(weights) == 15
    assert all(entry.dims[0] % TILE == 0 for entry in weights)


def test_odd_widths_lose_the_blocked_layout_and_padding_brings_it_back(paths):
    if stopwatch_here().facts.layout != "nchwc":
        pytest.skip("this runtime has no blocked layout")
    found = {way: rounding.convolutions(path) for way, path in paths.items()}
    assert found["dense"]["plain"] == found["aligned"]["plain"] == found["cured"]["plain"] == 0
    assert found["unaligned"]["plain"] >= 6
    assert found["unaligned"]["reorders"] > found["cured"]["reorders"]


def test_what_each_convolution_became_is_counted_once(paths):
    for path in paths.values():
        written = sum(node.op_type == "Conv" for node in onnx.load(path).graph.node)
        assert sum(rounding.convolutions(path)[kind] for kind in ("blocked", "plain")) == written
