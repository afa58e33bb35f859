"""Forms and ranks by time, on devices whose stairs are known: what is chosen, refused, taken back, remembered."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rankfold.devices import probe
from rankfold.errors import CheckFailed, InputError
from rankfold.export.budget import Budget, Chosen, choose, counted, judged
from rankfold.export.candidates import DENSE, Way, frames_of, model_of, place_of
from rankfold.export.damage import Candidate, scored
from rankfold.export.fold import tidy
from rankfold.export.forms import resolve_any
from rankfold.export.graphs import refresh_shapes, serialize
from rankfold.export.layers import layers_of
from rankfold.export.passes.fold_batchnorm import fold_batchnorm
from rankfold.export.search import Search
from rankfold.export.timing import LayerTimes, sketch
from rankfold.export.widths import Widths
from rankfold.export.wish import AUTO_FORMS
from rankfold.records import Comparison, Drop, PlanTiming
from rankfold.runtime.latency import Stopwatch, stopwatch
from rankfold.runtime.turns import Options

from ..runtime.fake_device import FakeDevice
from .nets import Net

STAIR = 8
NODE_S = 2e-6
_last: dict[str, float] = {}


def stairs(path: Path, slower: Callable[[str, tuple[int, ...]], float] = lambda name, shape: 1.0) -> float:
    """A MAC takes 1 ns, channels count in steps of 8, a node takes 2 µs."""
    key = f"{path}:{path.stat().st_mtime_ns}:{id(slower)}"
    if key not in _last:
        graph = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True).graph
        shapes = {
            v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.output)
        }
        shapes |= {entry.name: list(entry.dims) for entry in graph.initializer}
        total = 0.0
        for node in graph.node:
            total += NODE_S * (node.op_type != "ConstantOfShape")
            if node.op_type == "Conv":
                o, i, h, w = shapes[node.input[1]]
                pixels = math.prod(shapes[node.output[0]][2:])
                steps = math.ceil(o / STAIR) * math.ceil(i / STAIR) * STAIR**2
                total += 1e-9 * steps * h * w * pixels * slower(node.name, (o, i, h, w))
        _last[key] = total
    return _last[key]


@pytest.fixture
def model() -> ir.Model:
    net = Net(channels=8, spatial=(16, 16))
    x = net.block(net.block("input", "a", 32), "b", 32)
    x = net.block(x, "c", 48)
    made = ir.from_proto(net.model(net.head(x)))
    tidy(made)
    fold_batchnorm(made)
    refresh_shapes(made)
    return made


def watch_on(device: FakeDevice, folder: Path) -> Stopwatch:
    with device.launch() as process:
        facts = probe.facts(process)
    return stopwatch(device, facts, Options(), folder / "table.sqlite")


def device(time_of: Callable[[Path], float] = stairs) -> FakeDevice:
    return FakeDevice({}, time_of=time_of)


def all_candidates(model: ir.Model, tile: int = 1) -> dict[str, list[Candidate]]:
    return {layer.name: scored(layer, AUTO_FORMS, tile).candidates for layer in layers_of(model) if not layer.closed}


def chosen(model: ir.Model, watch: Stopwatch, budget: Budget, tile: int = 2) -> Chosen:
    return choose(search_of(model, watch, tile), budget, "board")


def search_of(model: ir.Model, watch: Stopwatch, tile: int = 2, widths: Widths | None = None) -> Search:
    return Search(model, serialize(model), all_candidates(model, tile), widths, watch)


def test_ranks_land_on_the_stairs_of_the_device(model, tmp_path):
    """Every second rank is a candidate; those just below a step give the most for what they take."""
    found = chosen(model, watch_on(device(), tmp_path), Budget(share=0.5))
    factored = [one for one in found.candidates.values() if one is not None]
    assert len(factored) >= 2
    assert all(rank % STAIR == 0 for one in factored for rank in one.ranks), factored
    assert found.timing.screened <= 0.5
    assert found.timing.predicted == pytest.approx(found.timing.screened, rel=0.03)


def test_where_factors_never_pay_nothing_is_shipped(model, tmp_path):
    """Kernels of other shapes than the layers have are factors: they run a thousand times slower here."""
    dense = {layer.shape for layer in layers_of(model)}

    def slow(path: Path) -> float:
        return stairs(path, lambda _, shape: 1.0 if shape in dense or shape[1] == 1 else 1000.0)

    watch = watch_on(device(slow), tmp_path)
    with pytest.raises(CheckFailed, match=r"expected at most 0\.500 of the original's time, found 1\.0\d\d"):
        chosen(model, watch, Budget(share=0.5))
    found = chosen(model, watch, Budget(damage=10.0))
    assert not any(found.candidates.values())
    assert found.timing.screened == pytest.approx(1, abs=0.01)


def test_a_layer_that_is_slower_in_place_goes_back(model, tmp_path):
    """Alone `b` is fast in factors, in the network it is not: as where a layout changes around it."""

    def in_place(path: Path) -> float:
        return stairs(path, lambda name, _: 6.0 if name.startswith("b_") else 1.0)

    found = chosen(model, watch_on(device(in_place), tmp_path), Budget(damage=0.5))
    assert found.candidates["b"] is None
    assert "slower in place than dense" in found.returned["b"]
    assert found.candidates["c"] is not None


def test_what_was_timed_is_not_timed_again(model, tmp_path):
    board = device()
    chosen(model, watch_on(board, tmp_path), Budget(share=0.6))
    watch, before = watch_on(board, tmp_path), board.launches
    known = watch.table.count()
    chosen(model, watch, Budget(share=0.6))
    assert watch.table.count() == known
    assert board.launches - before < 20  # whole networks only


def test_a_time_is_a_share_of_the_originals(model, tmp_path):
    watch = watch_on(device(), tmp_path)
    original = tmp_path / "original.onnx"
    original.write_bytes(serialize(model))
    found = chosen(model, watch, Budget(seconds=0.6 * stairs(original)))
    assert found.timing.budget == pytest.approx(0.6, rel=0.02)
    assert found.timing.screened <= 0.61


def test_a_table_that_knows_one_layer_of_a_file_shows_nothing_of_it(model, tmp_path):
    """Filled for `b` alone: shares of the time are known only once all layers were timed side by side."""
    watch, layers = watch_on(device(), tmp_path), [layer for layer in layers_of(model) if not layer.closed]
    ways = {layer.name: [Way("spatial", (8,))] for layer in layers if layer.name in ("b", "c")}
    one = LayerTimes(layers, {"b": ways["b"]}, watch)
    one.measure()
    assert [row.form for row in one.rows()] == ["spatial", "dense"]
    both = LayerTimes(layers, {"c": ways["c"], "b": ways["b"]}, watch)
    both.recall()
    assert both.rows() == []
    both.measure()
    assert {row.layers[0] for row in both.rows()} == {"b", "c"}


def test_the_last_network_that_loses_no_more_of_the_metric_is_taken(model, tmp_path):
    """A metric that falls with the damage predicted, as far as its steps go: the choice comes close to the limit."""
    watch, built = watch_on(device(), tmp_path), []

    def drop_of(candidates: Mapping[str, Candidate | None], widths: Mapping[str, int]) -> Drop:
        built.append(sum(one.damage for one in candidates.values() if one is not None))
        return Drop(metric="top-1", n=1000, value=built[-1] / 10, error=0.001)

    found = choose(search_of(model, watch), Budget(drop=0.05), "board", drop_of=drop_of)
    assert found.timing.drop is not None
    damage = sum(one.damage for one in found.candidates.values() if one is not None)
    assert found.timing.drop.value == pytest.approx(damage / 10)
    assert 0.8 * 0.05 < found.timing.drop.value <= 0.05
    assert any(one > 10 * 0.05 for one in built), "nothing beyond the limit was tried"
    assert len(built) == len(set(built)), "a network was judged twice"
    tight = choose(search_of(model, watch), Budget(drop=1e-9), "board", drop_of=drop_of)
    assert not any(tight.candidates.values())
    assert tight.timing.drop is not None
    assert tight.timing.drop.value == 0


def test_a_metric_and_a_limit_of_time_hold_together(model, tmp_path):
    """Too little damage leaves too much time: the search goes on upwards, and says so where both cannot be kept."""
    watch = watch_on(device(), tmp_path)

    def drop_of(candidates: Mapping[str, Candidate | None], widths: Mapping[str, int]) -> Drop:
        harm = sum(one.damage for one in candidates.values() if one is not None)
        return Drop(metric="top-1", n=1000, value=harm / 10, error=0.001)

    found = choose(search_of(model, watch), Budget(share=0.5, drop=0.5), "board", drop_of=drop_of)
    assert found.timing.screened <= 0.5
    assert found.timing.drop is not None
    assert found.timing.drop.value <= 0.5
    with pytest.raises(CheckFailed, match=r"(found no network that keeps both|within the damage|no choice has)"):
        choose(search_of(model, watch), Budget(share=0.3, drop=0.001), "board", drop_of=drop_of)


def test_a_solver_out_of_time_is_not_taken_for_a_limit_too_tight(model, tmp_path, monkeypatch):
    search = search_of(model, watch_on(device(), tmp_path))

    def out_of_time(*_: object) -> None:
        raise CheckFailed("found within 60 s")

    monkeypatch.setattr(search, "least", out_of_time)
    with pytest.raises(CheckFailed, match="found within 60 s"):
        choose(search, Budget(drop=0.5), "board", drop_of=lambda *_: Drop(metric="top-1", n=1, value=0, error=0))


def test_a_limit_of_time_and_one_of_harm_hold_together(model, tmp_path):
    watch = watch_on(device(), tmp_path)
    found = chosen(model, watch, Budget(share=0.7, damage=2.0))
    assert found.timing.screened <= 0.7
    assert sum(one.damage for one in found.candidates.values() if one is not None) <= 2.0
    with pytest.raises(CheckFailed, match=r"(found [01]\.\d+ within the damage|no choice has damage)"):
        chosen(model, watch, Budget(share=0.4, damage=1e-3))


def test_each_objective_is_least_where_it_is_asked_for(model, tmp_path):
    """Within the same damage: no plan has fewer bytes than that for size, or less memory than that for memory."""
    watch = watch_on(device(), tmp_path)
    problem = search_of(model, watch).problem()
    totals = {what: problem.solve(what, {"damage": 1.0}).totals for what in ("time", "bytes", "memory")}
    for what, mine in totals.items():
        assert all(mine[what] <= other[what] * (1 + 1e-3) for other in totals.values())
    assert totals["bytes"]["bytes"] < totals["time"]["bytes"]
    sizes = {}
    for goal in ("latency", "size"):
        found = chosen(model, watch, Budget(damage=1.0, objective=goal))
        sizes[goal] = sum(one.parameters for one in found.candidates.values() if one is not None)
    assert sizes["size"] != sizes["latency"]


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"share": 0.5, "seconds": 0.1},
        {"damage": 0.5, "drop": 0.1},
        {"share": 1.5},
        {"seconds": -1.0},
        {"damage": float("nan")},
        {"drop": 1.0},
        {"share": 0.5, "objective": "size"},
    ],
)
def test_budgets_that_make_no_sense_are_refused(asked):
    with pytest.raises(InputError, match="--"):
        Budget(**asked)


def test_candidates_compute_what_the_layer_with_its_factors_would(model):
    """The small models run, and have the MACs that the plan counts."""
    import onnxruntime

    for layer in layers_of(model):
        place = place_of(layer)
        for name in ("dense", *AUTO_FORMS):
            form = None if name == "dense" else resolve_any(name, layer.shape)
            way = DENSE if form is None else Way(form.name, form.ranks(layer.shape, 3))
            content = model_of(place, way)
            onnx.checker.check_model(onnx.ModelProto.FromString(content), full_check=True)
            session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
            entry = session.get_inputs()[0]
            out = np.asarray(session.run(None, {entry.name: np.ones(entry.shape, np.float32)})[0])
            assert out.shape[1] == layer.shape[0]
            assert np.isfinite(out).all()
        assert all(onnx.ModelProto.FromString(frame).graph.node for frame in frames_of(place))


def test_layers_alike_are_timed_once(tmp_path):
    net = Net(channels=8, spatial=(8, 8))
    made = ir.from_proto(net.model(net.head(net.block(net.block("input", "a", 8), "b", 8))))
    refresh_shapes(made)
    first, second = (place_of(layer) for layer in layers_of(made) if layer.node.op_type == "Conv")
    assert model_of(first, Way("spatial", (4,))) == model_of(second, Way("spatial", (4,)))
    assert model_of(first, DENSE) != model_of(first, Way("spatial", (4,)))


def test_a_sketch_has_the_shapes_of_the_plan_and_other_numbers(model):
    way = Way("spatial", (8,))
    drawn = ir.from_proto(onnx.ModelProto.FromString(sketch(model, {"b": way}, [])))
    shapes = {layer.name: layer.shape for layer in layers_of(drawn)}
    assert shapes["b_v"] == (8, 32, 3, 1)
    assert shapes["b_u"] == (32, 8, 1, 3)
    assert [layer.name for layer in layers_of(model)] == ["a", "b", "c", "fc"]


@pytest.mark.parametrize(
    ("ratio", "run_s", "budget", "says"),
    [
        (1.8, 1e-3, Budget(share=0.6), r"^1\.80× as fast \(1\.79 to 1\.81\) on board with 1 thread, predicted 1\.70×$"),
        (1.62, 1e-3, Budget(share=0.6), "; 2.9% more time than was wished for"),
        (1.5, 1e-3, Budget(share=0.6), "expected at most 0.600 of the original's time, found 0.667"),
        (1.8, 3.4e-3, Budget(seconds=3e-3), "expected a run of at most 3 ms, found 3.4 ms in launch pairs"),
        (0.9, 1e-3, Budget(damage=0.1), "no gain on this device: 0.90× as fast"),
    ],
)
def test_what_launch_pairs_say_is_held_against_the_wish(ratio, run_s, budget, says):
    timing = PlanTiming(device="board", threads=1, budget=budget.share, fastest=0.4, predicted=1 / 1.7, screened=0.6)
    found = Comparison(baseline="original", variant="small", ratio=ratio, low=ratio - 0.01, high=ratio + 0.01, pairs=8)
    try:
        verdict = judged(timing, found, budget, run_s).verdict
    except CheckFailed as error:
        verdict = str(error)
    assert re.search(says, verdict)


def test_a_count_is_held_against_the_wish_and_called_a_proxy():
    told = {"device": "qemu-cortex-a72", "threads": 1, "cost": "instructions", "budget": 0.6}
    timing = PlanTiming.model_validate(told | {"fastest": 0.4, "predicted": 0.58, "screened": 0.6})
    found = counted(timing, 0.59)
    assert (found.measured, found.low) == (0.59, None)
    assert re.match(
        r"0\.590 of the original's instructions on qemu-cortex-a72, predicted 0\.580: a proxy", found.verdict
    )
    with pytest.raises(CheckFailed, match=r"at most 0\.600 of the original's instructions, found 0\.700"):
        counted(timing, 0.7)
