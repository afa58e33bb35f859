"""compress on the command line: with and without data, from a plan, and one line for what is wrong."""

from __future__ import annotations

import json
import shlex
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from rankfold.records import Cost, Frontier, LayerTable, Parity, Plan
from rankfold.runtime import latency, turns
from rankfold.runtime.costs import count
from rankfold.runtime.latency import Table

from .conftest import SOAK
from .emulation import counter
from .export.nets import Net
from .making import rankfold

ONE_OF = (
    "give limits (--budget, --latency, --damage, --max-drop), or one of --energy, --macs, --budget-bytes and --plan, "
    "or --prune"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A network with a dead channel, images that are alike as photographs are, and plans; read only."""
    folder = tmp_path_factory.mktemp("models")
    net = Net(channels=3, spatial=(12, 12))
    x = net.block("input", "a", 16, dead=(3,))
    x = net.block(net.block(x, "b", 24), "c", 24)
    onnx.save(net.model(net.head(x)), folder / "net.onnx")
    rng = np.random.default_rng(0)
    rough = rng.normal(size=(96, 3, 4, 4)).astype(np.float32)
    np.savez(folder / "data.npz", input=rough.repeat(3, axis=2).repeat(3, axis=3))
    np.savez(folder / "small.npz", input=rough)
    return folder


def _outputs(model: Path, data: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": np.load(data)["input"]})[0])


def _error(models: Path, small: Path) -> float:
    wanted, found = (_outputs(model, models / "data.npz") for model in (models / "net.onnx", small))
    return float(np.square(found - wanted).sum() / np.square(wanted - wanted.mean(0)).sum())


def in_a_fresh_process(folder: Path, line: str) -> tuple[int, str, str]:
    done = rankfold(folder, *shlex.split(line))
    return done.returncode, done.stdout, done.stderr


def test_data_makes_the_same_macs_cost_less(models, tmp_path, call, monkeypatch):
    monkeypatch.chdir(models)
    errors = {}
    for name, run in (("plain", call), ("aware", partial(in_a_fresh_process, models))):
        out = tmp_path / f"{name}.onnx"
        data = " --data data.npz" if name == "aware" else ""
        code, said, err = run(f"compress net.onnx -o {out} --macs 0.6 --tile 1{data}")
        assert (code, err) == (0, ""), err
        plan = Plan.read(out.with_suffix(".plan.json"))
        counted = count(out)
        assert counted.macs is not None
        assert counted.macs == sum(layer.macs or 0 for layer in plan.layers.values())
        assert counted.macs <= 0.6 * sum(layer.macs_dense or 0 for layer in plan.layers.values())
        assert all(layer.loss is not None for layer in plan.layers.values() if layer.form != "dense")
        checks = Parity.read(out.with_suffix(".parity.json")).checks
        assert {check.what for check in checks if check.bound is None} == {"factorise"}
        assert "M MACs" in said.splitlines()[-1]
        errors[name] = _error(models, out)
    assert errors["aware"] < 0.7 * errors["plain"]


def test_a_plan_is_carried_out_again_and_only_planned_if_so_wished(models, tmp_path, call, monkeypatch):
    monkeypatch.chdir(models)
    plan, again = tmp_path / "first.plan.json", tmp_path / "again.onnx"
    options = "--macs 0.6 --tile 1 --data data.npz --plan-only --frontier"
    code, said, err = call(f"compress net.onnx -o {tmp_path / 'first.onnx'} {options}")
    assert code == 0, err
    assert "predicted damage" in said
    assert {path.name for path in tmp_path.iterdir()} == {plan.name}
    code, _, err = call(f"compress net.onnx -o {again} --plan {plan} --tile 1 --data data.npz")
    assert code == 0, err
    kept = [(name, layer.form, layer.ranks) for name, layer in Plan.read(plan).layers.items()]
    assert [(n, x.form, x.ranks) for n, x in Plan.read(again.with_suffix(".plan.json")).layers.items()] == kept


def test_pruning_and_factorising_go_together(models, tmp_path, call, monkeypatch):
    monkeypatch.chdir(models)
    out = tmp_path / "small.onnx"
    code, _, err = call(f"compress net.onnx -o {out} --prune 0.3 --macs 0.7 --tile 1 --data data.npz")
    assert code == 0, err
    plan = Plan.read(out.with_suffix(".plan.json"))
    assert any("pruned" in group.reason for group in plan.groups.values())
    assert any(layer.form != "dense" for layer in plan.layers.values())
    counted, dense = count(out).macs, count(models / "net.onnx").macs
    assert counted is not None
    assert dense is not None
    assert counted <= 0.7 * 0.7 * dense * 1.01
    assert _error(models, out) < 0.3


def test_a_file_of_at_most_so_many_bytes(models, tmp_path, call, monkeypatch):
    monkeypatch.chdir(models)
    out, before = tmp_path / "small.onnx", (models / "net.onnx").stat().st_size
    budget = int(0.7 * before)
    code, said, err = call(f"compress net.onnx -o {out} --budget-bytes {budget} --tile 1 --data data.npz --frontier")
    assert code == 0, err
    assert 0.4 * budget < out.stat().st_size <= budget
    assert "MACs or weights" in said
    assert "calibration inputs" in said
    damage = Parity.read(out.with_suffix(".parity.json")).damage
    assert damage is not None
    assert damage.n == 96
    assert damage.error == pytest.approx(_error(models, out), rel=1e-3)


def test_layers_are_timed_the_choice_is_judged_and_measured(models, tmp_path, call, monkeypatch):
    """Limits so wide that no measured time can fail the test; a tenth of the runs."""
    monkeypatch.setattr(latency, "ROUNDS", latency.ROUNDS // 10)
    monkeypatch.setattr(turns, "_PAIR_S", turns._PAIR_S / 10)
    monkeypatch.chdir(models)
    out, table = tmp_path / "fast.onnx", tmp_path / "table.sqlite"
    code, timed, err = call(f"latency-table fill net.onnx --tile 8 --table {table}")
    assert code == 0, err
    assert "spatial" in timed
    written = tmp_path / "table.json"
    assert call(f"latency-table show net.onnx --tile 8 --table {table} -o {written}")[:2] == (0, timed)
    rows = LayerTable.read(tmp_path / "table.json").rows
    assert {"spatial", "dense"} <= {row.form for row in rows}
    assert {name for row in rows for name in row.layers} == {"a", "b", "c"}
    options = f"--max-drop 60 --data data.npz --frontier --tile 8 --table {table}"
    code, said, err = call(f"compress net.onnx -o {out} {options}")
    assert code == 0, err
    timing = Plan.read(out.with_suffix(".plan.json")).timing
    assert timing is not None
    assert timing.low is not None
    assert timing.high is not None
    assert 0 < timing.low <= timing.high
    assert said.splitlines()[-1] == timing.verdict
    assert f"on host with 1 thread, predicted {1 / timing.predicted:.2f}×" in timing.verdict
    assert timing.drop is not None
    assert timing.drop.value <= 0.6
    assert timing.drop.n == 96
    assert timing.drop.said in timing.verdict
    drawn = Frontier.read(tmp_path / "fast.frontier.json")
    assert [curve.rule for curve in drawn.curves] == ["latency", "macs", "energy, channel", "energy, spatial"]
    assert all(point.time > 0 for curve in drawn.curves for point in curve.points)
    assert drawn.n == 48
    assert "energy, spatial" in said
    again = tmp_path / "again.onnx"
    code, _, err = call(f"compress net.onnx -o {again} --plan {out.with_suffix('.plan.json')}")
    assert code == 0, err
    repeated = Plan.read(again.with_suffix(".plan.json"))
    assert repeated.timing is not None
    assert repeated.timing.measured is None
    assert [one.ranks for one in repeated.layers.values()] == [
        one.ranks for one in Plan.read(out.with_suffix(".plan.json")).layers.values()
    ]
    refused = tmp_path / "refused.onnx"
    code, _, err = call(f"compress net.onnx -o {refused} --latency 1us --table {table}")
    assert code == 1
    assert "with every layer in its fastest way, whatever the damage" in err
    assert list(tmp_path.glob("refused*")) == []


def test_full_rank_changes_nothing(models, tmp_path, call, monkeypatch):
    monkeypatch.chdir(models)
    out = tmp_path / "same.onnx"
    code, _, err = call(f"compress net.onnx -o {out} --energy 1 --tile 1")
    assert code == 0, err
    assert _error(models, out) < 1e-9


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("net.onnx -o out.onnx", ONE_OF),
        (
            "net.onnx -o out.onnx --macs 0.5 --energy 0.9",
            ONE_OF,
        ),
        ("net.onnx -o out.onnx --budget 0.5 --macs 0.5", ONE_OF),
        ("net.onnx -o out.onnx --budget 0.5 --latency 3ms", "give --budget or --latency, --damage or --max-drop"),
        ("net.onnx -o out.onnx --budget 0.5 --objective size", "--objective size: say what it may cost"),
        ("net.onnx -o out.onnx --max-drop 1", "--max-drop: expected --data with 32 inputs or more, found none"),
        ("net.onnx -o out.onnx --budget 2", "--budget: expected a share of the time in (0, 1], found 2.0"),
        ("net.onnx -o out.onnx --latency fast", "--latency 'fast': expected a time such as 3ms, 250us or 0.1s"),
        ("net.onnx -o out.onnx --budget 0.5 --table foreign.json", "expected a latency table, found"),
        (
            "net.onnx -o out.onnx --budget 0.5 --keep a --keep b --keep c --keep fc --table t.sqlite",
            "expected layers that can be written in another way, found none",
        ),
        ("net.onnx -o out.onnx --macs 0.5 --keep nope", "unknown layer 'nope'; the model has a, b, c, fc"),
        ("net.onnx -o out.onnx --budget 0.5 --keep nope --table t.sqlite", "unknown layer 'nope'; the model has a, b"),
        ("net.onnx -o out.onnx --plan ranks.json --keep a", "--keep: a --plan decides on every layer itself"),
        ("net.onnx -o out.onnx --macs 0.5 --widths", "--widths: goes with --budget, --latency, --damage or --max-drop"),
        ("net.onnx -o out.onnx --macs 0", "--macs: expected a share in (0, 1], found 0.0"),
        ("net.onnx -o out.onnx --macs 0.001 --tile 1", "at the smallest ranks; allow"),
        ("net.onnx -o out.onnx --budget-bytes 5000 --tile 1", "weights in the layers, found"),
        ("net.onnx -o out.onnx --budget-bytes 5000 --macs 0.5", ONE_OF),
        ("net.onnx -o out.onnx --macs 0.5 --data small.npz", "input 'input': expected data of shape"),
        ("net.onnx -o out.onnx --macs 0.5 --data nowhere.npz", "nowhere.npz"),
        ("net.onnx -o out.onnx --plan nowhere.json", "nowhere.json"),
        ("net.onnx -o out.onnx --plan foreign.json", "the plan names layer 'other', which the model does not have"),
        ("net.onnx -o out.onnx --plan ranks.json", "layer 'b': expected one rank from 1 to 24, found [25]"),
        ("net.onnx -o out.onnx --plan torn.json", "torn.json"),
        ("missing.onnx -o out.onnx --macs 0.5", "missing.onnx"),
        ("net.onnx -o small.npz/out.onnx --macs 0.5", "small.npz/out.onnx"),
    ],
)
def test_bad_input_is_one_line(models, tmp_path, call, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    for name in ("net.onnx", "small.npz"):
        (tmp_path / name).symlink_to(models / name)
    decision = {"form": "channel", "ranks": [2], "reason": "by hand"}
    for name, layers in (("foreign", {"other": decision}), ("ranks", {"b": {**decision, "ranks": [25]}})):
        (tmp_path / f"{name}.json").write_text(json.dumps({"format": 1, "tile": 1, "layers": layers}))
    Table(tmp_path / "t.sqlite", {})
    (tmp_path / "torn.json").write_text('{"format": 1, "til')
    before = {path.name for path in tmp_path.iterdir()}
    code, out, err = call(f"compress {arguments}")
    assert code in (1, 2)
    (line,) = err.splitlines()
    assert line.startswith("rankfold: ")
    assert says in line
    assert "Traceback" not in out
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_model_without_a_choice_has_an_empty_table_and_a_table_that_is_not_there_is_not_made(
    tmp_path, call, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    net = Net(channels=3, spatial=(8, 8))
    onnx.save(net.model(net.conv("input", "depthwise", 3, group=3)), tmp_path / "net.onnx")
    table = tmp_path / "table.sqlite"
    assert call(f"latency-table show net.onnx --table {table}") == (
        2,
        "",
        f"rankfold: no latency table at {table}; fill it first: rankfold latency-table fill net.onnx\n",
    )
    assert not table.exists()
    assert call(f"latency-table fill net.onnx --table {table}") == (
        0,
        "net.onnx: no layer of it can be written in another way\n",
        "",
    )


def test_instructions_are_a_cost_of_emulated_devices_and_of_budgets(models, tmp_path, call, monkeypatch):
    monkeypatch.chdir(models)
    for options, says in {
        "--budget 0.7 --cost instructions": "--cost instructions: they are counted on qemu-… alone",
        "--macs 0.7 --cost instructions": "--cost instructions: goes with --budget, --damage or --max-drop",
    }.items():
        code, _, error = call(f"compress net.onnx -o {tmp_path / 'out.onnx'} {options}")
        assert code == 2
        assert says in error
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not SOAK, reason="a dozen emulated processes: in soak")
def test_a_plan_by_instructions_is_chosen_and_counted(models, tmp_path, call, monkeypatch):
    counter("qemu-cortex-a72")
    monkeypatch.chdir(models)
    out, table = tmp_path / "small.onnx", tmp_path / "table.sqlite"
    options = f"--budget 0.8 --cost instructions --device qemu-cortex-a72 --form spatial --table {table}"
    code, said, error = call(f"compress net.onnx -o {out} {options}")
    assert code == 0, error
    timing = Plan.read(out.with_suffix(".plan.json")).timing
    assert timing is not None
    assert timing.measured is not None
    assert (timing.cost, timing.low) == ("instructions", None)
    assert timing.measured == pytest.approx(timing.screened, rel=0.01)
    assert timing.measured <= 0.8 * 1.05
    assert said.splitlines()[-1] == timing.verdict
    code, said, error = call(f"cost net.onnx {out} -o {tmp_path / 'cost.json'}")
    assert code == 0, error
    dense, small = Cost.read(tmp_path / "cost.json").models
    assert small.instructions / dense.instructions == pytest.approx(timing.measured, rel=0.01)
