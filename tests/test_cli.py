"""The command line on bad input: one clear line, the right exit code, and every file as it was.

Rows run in this process through `main`; what needs a real one (Ctrl-C, a full disk) gets it.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

import rankfold.stages
from rankfold.cli import app
from rankfold.files import sha256_of
from rankfold.records import Bench, Evaluation, Parity, Plan, TrainRecord
from rankfold.train import checkpoint

from .children import started
from .making import RANKFOLD, Maker
from .train.recipes import toml

_LAST_BOARD_S = 30.0  # one that was just being started ends by itself, once it has read that nobody is there
_PROGRESS = re.compile(r"\S+: \d+/\d+ .*")  # what a command says every 10 s where stderr is no terminal

CARD = 'name = "{name}"\nabout = "a test"\ntransport = "local"\ntested = "never"\n'
NPZ = toml().replace('name = "glyphs"\n', 'name = "npz"\n')

# command line, exit code, what the line must say
BAD = [
    # models
    ("bench missing.onnx", 2, "no model missing.onnx"),
    ("bench zero.onnx", 2, "zero.onnx: expected an ONNX model"),
    ("bench truncated.onnx", 2, "truncated.onnx: not an ONNX file, or cut short"),
    ("bench words.onnx", 2, "words.onnx: not an ONNX file"),
    ("bench nan.onnx", 2, "nan.onnx: initialiser 'w' contains NaN"),
    ("bench small.onnx wide.onnx", 2, "wide takes inputs .*, small takes .*"),
    ("bench unfinished", 2, "no model unfinished/dense.onnx"),
    # bench options
    ("bench run --device pi99", 2, "unknown device 'pi99'; known are .*host"),
    ("bench run --device misspelt", 2, "card .*unknown key 'transprot'"),
    ("bench run --device alien", 3, "device 'alien' should be riscv64, found"),
    ("bench run --provider warp", 2, "warp"),
    ("bench run --session-config session.intra_op.allow_spining=0", 2, "allow_spining"),
    ("bench run --session-config spinning", 2, "'spinning': expected key=value"),
    ("bench run --threads 0", 2, "'--threads'.*greater than or equal to 1"),
    ("bench run --threads 1000", 2, "1000 threads asked, .* cores available"),
    ("bench run --pairs many", 2, "'--pairs'.*integer"),
    ("bench run --gate 'compact is faster'", 2, "gate 'compact is faster' is not understood"),
    ("bench run --gate 'small <= 0.8 * dense'", 2, "gate names 'small', the bench has dense, compact"),
    ("bench run --half-width 0.5%% --pairs 8", 2, "--half-width '0.5%%': expected a share such as 0.5% or 0.005"),
    ("bench run --half-width 0.5% --pairs 8", 2, "the number of pairs or the half-width that decides it, not both"),
    ("bench run --half-width 300%", 2, "a half-width of 3 is not between 0 and 1"),
    ("bench run --cores 1-", 2, "--cores '1-': expected core numbers such as 0,2-3"),
    ("bench run --cores 3-2", 2, "--cores '3-2': expected core numbers"),
    ("bench run --cores 9999", 2, r"cores \[9999\] are not available, only"),
    ("bench run --sweep speed=2", 2, "--sweep 'speed=2': expected threads=1,2"),
    ("bench run --sweep threads=1 --gate 'compact <= dense'", 2, "--gate and --summary judge one setting"),
    ("bench run --rate 0", 2, "a rate of 0 makes no sense"),
    ("bench run --sustain -3", 2, "a time to sustain of -3 makes no sense"),
    ("compare missing.json run/bench.json", 2, "missing.json"),
    ("compare run/bench.json words.json", 2, "words.json: expected JSON"),
    ("compare run/bench.json run/bench.json --gate 0", 2, "'--gate'"),
    ("compare run/bench.json run/bench.json --gate 9 --summary run", 2, "cannot write run: Is a directory"),
    ("bench run -o run", 2, "cannot write run: Is a directory"),
    ("bench run -o recipe.toml/bench.json", 2, "cannot write recipe.toml/bench.json"),
    ("bench run -o /proc/bench.json", 2, "cannot write /proc/bench.json"),
    # recipes
    ("train no-such", 2, "no recipe 'no-such'; give .*glyphs-dec3"),
    ("train missing.toml", 2, "cannot read recipe missing.toml: No such file"),
    ("train zero.toml", 2, "recipe zero.toml: 'about': Field required"),
    ("train words.toml", 2, "recipe words.toml: not TOML"),
    ("train small.toml", 2, "recipe small.toml: not TOML"),
    ("train key.toml", 2, "recipe key.toml: unknown key 'optimizer.learning_rate'"),
    ("train layer.toml --out new", 2, "conv9"),
    ("train recipe.toml --set optimizer.lrr=1", 2, "unknown key 'optimizer.lrr'"),
    ("train recipe.toml --set steps", 2, "--set 'steps': expected key=value"),
    ("train recipe.toml --set about.x=1", 2, "'about' is a value, not a table"),
    ("train recipe.toml --set optimizer.lr=fast", 2, "'optimizer.lr': .* found 'fast'"),
    ("train recipe.toml --set model.name=vgg --out new", 2, "unknown model 'vgg'"),
    ("train recipe.toml --set optimizer.batch_size=143 --out new", 2, "batch size 143 leaves"),
    ("train recipe.toml --set optimizer.lr=9 --resume --out run", 2, "of another recipe or seed"),
    ("train recipe.toml --resume --out cut", 2, "cut/checkpoint.safetensors: truncated or not a checkpoint"),
    ("train recipe.toml --seed -1", 2, "'--seed'"),
    # plans to train
    ("train recipe.toml --from run --out new", 2, "--from run: goes with --plan"),
    ("train recipe.toml --plan run/plan.json --from run --out run", 2, "goes with --plan, and another --out than"),
    ("train recipe.toml --plan missing.plan.json --from run --out new", 2, "cannot read missing.plan.json: No such"),
    ("train recipe.toml --plan key.json --from run --out new", 2, "key.json: unknown key 'contxt'"),
    ("train recipe.toml --plan run/plan.json --from unfinished --out new", 2, "cannot read unfinished/train.json"),
    ("train recipe.toml --plan run/plan.json --from cut --out new", 2, "cut/checkpoint.safetensors: truncated or not"),
    ("train recipe.toml --plan run/plan.json --out new", 2, "starts with random weights .* with --from"),
    ("train recipe.toml --set regularizer.table=missing.json --out new", 2, "cannot read missing.json: No such file"),
    ("train recipe.toml --set regularizer.table=key.json --out new", 2, "key.json: unknown key 'contxt'"),
    ("train recipe.toml --set distill.weight=2 --out new", 2, "'distill.weight': .*less than or equal to 1"),
    # data
    ("train recipe.toml --data small.npz --out run", 2, "takes no --data"),
    ("train npz.toml --out new", 2, "needs a data file"),
    ("train npz.toml --data missing.npz --out new", 2, "cannot read data missing.npz"),
    ("train npz.toml --data zero.npz --out new", 2, "zero.npz: expected an npz file"),
    ("train npz.toml --data words.npz --out new", 2, "words.npz: expected an npz file"),
    ("train npz.toml --data lacking.npz --out new", 2, "lacking.npz: no array 'x_test'"),
    ("train npz.toml --data empty.npz --out new", 2, "empty.npz: x_train must be non-empty"),
    ("train npz.toml --data objects.npz --out new", 2, "objects.npz: expected an npz file of plain arrays"),
    ("train npz.toml --data labels.npz --out new", 2, "labels.npz: y_train must be 4 whole numbers"),
    ("evaluate run --data small.npz", 2, "takes no --data"),
    ("evaluate run --split all", 2, "'--split'"),
    # outputs of a training
    ("train recipe.toml --out recipe.toml", 2, "cannot write recipe.toml/checkpoint.safetensors"),
    ("train recipe.toml --out /proc/run", 2, "cannot write /proc/run/checkpoint.safetensors"),
    # run folders
    ("export no-such", 2, "cannot read no-such/train.json"),
    ("export unfinished", 2, "cannot read unfinished/train.json"),
    ("export cut", 2, "cut/checkpoint.safetensors: truncated or not a checkpoint"),
    ("export nan", 2, "nan/checkpoint.safetensors: '.*' holds NaN"),
    ("export run --form diagonal", 2, "'--form'.*channel"),
    ("export run --energy 2", 2, "'--energy'.*less than or equal to 1"),
    ("export run --tile 0", 2, "--tile '0': expected auto or a whole number"),
    ("export run --tile wide", 2, "--tile 'wide': expected auto or a whole number"),
    ("export run --parameters 1", 1, "parameters"),
    ("evaluate unfinished", 2, "cannot read unfinished/train.json"),
    ("report no-such", 2, "no-such"),
    ("report unfinished", 2, "unfinished"),
    ("report words.json", 2, "words.json: expected JSON"),
    ("report key.json", 2, "key.json: .*"),
    ("report run -o page.pdf", 2, "page.pdf: expected a folder or a name that ends in .html"),
    ("report run -o recipe.toml/report.html", 2, "cannot write recipe.toml/report.html"),
    ("report run --headline ghost", 2, "ghost"),
    # the rest
    ("devices probe pi99", 2, "unknown device 'pi99'"),
    ("squeeze model.onnx", 2, "No such command 'squeeze'"),
    ("train", 2, "Missing argument 'recipe'"),
    ("train recipe.toml --epochs 3", 2, "--epochs"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, finished: Maker) -> Path:
    """Good and bad inputs of all kinds, and a finished run that no bad input may change."""
    place = tmp_path_factory.mktemp("inputs")
    shutil.copytree(finished.run, place / "run")
    (place / "unfinished").mkdir()
    for name in ("cut", "nan"):
        (place / name).mkdir()
        shutil.copy(finished.run / "train.json", place / name)
    whole = (finished.run / "checkpoint.safetensors").read_bytes()
    (place / "cut" / "checkpoint.safetensors").write_bytes(whole[: len(whole) // 2])
    _spoil_a_weight(finished.run / "checkpoint.safetensors", place / "nan" / "checkpoint.safetensors")
    for suffix in ("onnx", "toml", "npz", "json"):
        (place / f"zero.{suffix}").touch()
        (place / f"words.{suffix}").write_text("this is not it\n")
    _write_models(place)
    _write_recipes(place)
    _write_data(place)
    (place / "key.json").write_text('{"format": 1, "contxt": 1}')
    cards = place / "config" / "rankfold" / "devices"
    cards.mkdir(parents=True)
    (cards / "misspelt.toml").write_text(CARD.format(name="misspelt").replace("transport", "transprot"))
    (cards / "alien.toml").write_text(CARD.format(name="alien") + 'expected_architecture = "riscv64"\n')
    return place


def _spoil_a_weight(source: Path, target: Path) -> None:
    stored = checkpoint.load(source)
    stored.tensors["model.fc.weight"][0, 0] = float("nan")
    facts = {"rankfold.format": checkpoint.FORMAT, "rankfold.facts": json.dumps(stored.facts)}
    save_file(stored.tensors, target, metadata=facts)


def _write_models(place: Path) -> None:
    onnx.save(_scaled(8, 1.0), place / "small.onnx")
    onnx.save(_scaled(9, 1.0), place / "wide.onnx")
    onnx.save(_scaled(8, np.nan), place / "nan.onnx")
    whole = (place / "run" / "dense.onnx").read_bytes()
    (place / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    (place / "small.toml").write_bytes((place / "small.onnx").read_bytes())


def _scaled(width: int, factor: float) -> onnx.ModelProto:
    """y = x · w"""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(np.full(width, factor, np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _write_recipes(place: Path) -> None:
    (place / "recipe.toml").write_text(toml())
    (place / "npz.toml").write_text(NPZ)
    (place / "key.toml").write_text(toml().replace("lr = 0.05", "learning_rate = 0.05"))
    (place / "layer.toml").write_text(toml().replace("[regularizer]", '[regularizer]\nskip = ["conv9"]'))


def _write_data(place: Path) -> None:
    images, labels = np.zeros((4, 8, 8), np.uint8), np.arange(4)
    good: dict[str, Any] = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    objects = np.array([{}], dtype=object)
    for name, arrays in {
        "small": good,
        "lacking": {"x_train": images, "y_train": labels},
        "empty": {key: array[:0] for key, array in good.items()},
        "objects": good | {"x_train": objects},
        "labels": good | {"y_train": labels + 0.5},
    }.items():
        np.savez(place / f"{name}.npz", allow_pickle=True, **arrays)


@pytest.mark.parametrize(("line", "code", "says"), BAD, ids=[row[0] for row in BAD])
def test_bad_input_is_one_line_and_changes_no_file(folder, call, monkeypatch, line, code, says):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    before = contents(folder)
    found, out, err = call(line)
    assert (found, out) == (code, ""), err
    assert_one_line(err, says)
    assert contents(folder) == before


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_one_line(err: str, says: str) -> None:
    """Exactly one line on stderr, ours, besides the progress of long work."""
    lines = [line for line in err.splitlines() if not _PROGRESS.fullmatch(line)]
    assert len(lines) == 1, err
    assert re.match("rankfold: ", lines[0])
    assert re.search(says, lines[0]), lines[0]
    assert "Traceback" not in err


# --- the way through ----------------------------------------------------------------------------------------


def test_what_a_finished_run_leaves_joins_by_sha256(finished):
    run = finished.run
    files = {sha256_of(run / f"{name}.onnx") for name in ("dense", "compact")}
    bench = Bench.read(run / "bench.json")
    assert {variant.sha256 for variant in bench.variants} == files
    assert {score.model_sha256 for score in Evaluation.read(run / "evaluation.json").scores} == files
    assert [comparison.variant for comparison in bench.comparisons] == ["compact"]
    assert TrainRecord.read(run / "train.json").steps == 30
    assert all(layer.reason for layer in Plan.read(run / "plan.json").layers.values())
    assert all(check.passed for check in Parity.read(run / "parity.json").checks if "not used" not in check.what)
    page = (run / "report.html").read_text()
    assert all(sha[:12] in page for sha in files)


@pytest.mark.parametrize(
    ("low", "high", "code", "says"),
    [(1.2, 1.4, 0, ""), (0.7, 0.9, 1, "gate fails: compact takes"), (0.9, 1.2, 4, "gate is undecided: .*more pairs")],
)
def test_a_gate_decides_the_exit_code(finished, tmp_path, monkeypatch, call, low, high, code, says):
    """The whole interval must satisfy the gate; the record that is judged is there in any case."""
    measured = Bench.read(finished.run / "bench.json")
    comparison = measured.comparisons[0].model_copy(update={"low": low, "high": high, "ratio": (low * high) ** 0.5})
    judged = measured.model_copy(update={"comparisons": [comparison]})
    monkeypatch.setattr(rankfold.stages, "measure_models", lambda *_, output, **__: judged.write(output) or judged)
    found, out, err = call(f"bench {finished.run} -o {tmp_path / 'b.json'} --gate 'compact <= dense'")
    assert found == code, err
    assert Bench.read(tmp_path / "b.json") == judged
    if code:
        assert_one_line(err, says)
    else:
        assert (err, "gate holds" in out) == ("", True)


@pytest.mark.parametrize(("limit", "code", "says"), [(1.5, 0, ""), (0.5, 1, "gate fails: compact takes")])
def test_compare_judges_two_benches_and_leaves_a_summary(finished, tmp_path, call, limit, code, says):
    """The same record twice: its time is 1 of the old one, whatever its noise."""
    bench, summary = finished.run / "bench.json", tmp_path / "gate.md"
    summary.write_text("before\n")
    found, out, err = call(f"compare {bench} {bench} --gate {limit} --summary {summary}")
    assert found == code, err
    assert "compact (the same file)" in out
    if code:
        assert_one_line(err, says)
    else:
        assert (err, "gate holds" in out) == ("", True)
    page = summary.read_text()
    assert page.startswith("before\n### rankfold: gate ")
    assert "| compact | 1.000" in page


def test_a_sweep_leaves_a_record_a_setting_and_loads_and_operators_in_it(finished, tmp_path, call, monkeypatch):
    monkeypatch.setattr("rankfold.runtime.load.PACED_S", 0.1)
    monkeypatch.setattr("rankfold.runtime.turns._PAIR_S", 0.1)
    options = "--pairs 2 --rate 200 --sustain 0.1 --operators --sweep spinning=on,off"
    found, out, err = call(f"bench {finished.run} -o {tmp_path / 'b.json'} {options}")
    assert found == 0, err
    names = [f"b.spinning-{state}.json" for state in ("on", "off")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for name, line in zip(names, out.splitlines(), strict=True):
        assert line.startswith(name.split(".")[1])
        assert name in line
        record = Bench.read(tmp_path / name)
        assert [one.variant for one in record.paced] == ["dense", "compact"]
        assert [len(one.responses_s) + one.dropped for one in record.paced] == [20, 20]
        assert all(one.moments for one in record.sustained)
        assert all(one.nodes for one in record.operators)
    assert Bench.read(tmp_path / names[1]).context.session_config == {"session.intra_op.allow_spinning": "0"}


def commands(group=None, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group there is."""
    group = group or typer.main.get_command(app)
    yield words
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*words, name))


@pytest.mark.parametrize("words", tuple(commands()), ids=lambda words: " ".join(words) or "rankfold")
def test_every_help_shows_an_example(call, words):
    code, out, err = call(f"{' '.join(words)} --help")
    assert (code, err) == (0, "")
    assert re.search(r"Examples?: +rankfold \w+", out), out


def test_no_arguments_print_the_help_alone(call):
    code, out, err = call("")
    assert code == 2
    assert "Usage" in out + err
    assert "rankfold: " not in err


def test_help_in_a_fresh_process_says_how_long_it_took():
    """Under half a second is the aim; a time is never a reason to fail."""
    began_s = time.perf_counter()
    done = subprocess.run([*RANKFOLD, "--help"], capture_output=True, text=True, check=True)
    print(f"rankfold --help took {time.perf_counter() - began_s:.2f} s")
    assert "Usage" in done.stdout


# --- full disks ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_output_that_cannot_be_printed_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*RANKFOLD, "devices", "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert_one_line(done.stderr, "No space left on device")


@pytest.mark.parametrize(
    ("line", "size_kib"),
    [
        ("train recipe.toml --out disk", 12),  # the checkpoint has 22 kB
        ("report run -o disk/report.html", 24),  # the page has 45 kB
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(folder, line, size_kib):
    """A disk of our own, mounted for one process where the system lets us."""
    (folder / "disk").mkdir(exist_ok=True)
    script = (
        f"mount -t tmpfs -o size={size_kib}k tmpfs disk || exit 99\n"
        'echo old > disk/report.html; "$@"; echo "code $?"; find disk -type f; cat disk/report.html'
    )
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *RANKFOLD, *line.split()]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare here: a small disk cannot be mounted")
    if not done.stdout:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    assert_one_line(done.stderr, "cannot write disk/.*No space left on device")
    assert done.stdout.splitlines() == ["code 2", "disk/report.html", "old"]


# --- Ctrl-C -------------------------------------------------------------------------------------------------


def interrupt(line: str, place: Path, ready: Callable[[int], bool]) -> None:
    """Run a command in a child, and press Ctrl-C once it is `ready(pid)`: it says so in one line."""
    with started(line.split(), place) as child:
        child.wait_for(lambda: ready(child.pid))
        code = child.stop(signal.SIGINT)
        assert code == 130, child.said("err")
        assert_one_line(child.said("err"), "interrupted; nothing half-written is left")


def test_ctrl_c_in_training_leaves_a_checkpoint_that_resumes(tmp_path, call):
    (tmp_path / "recipe.toml").write_text(toml().replace("steps = 30", "steps = 60"))
    run = tmp_path / "run"
    interrupt("train recipe.toml --out run", tmp_path, lambda _: (run / "checkpoint.safetensors").exists())
    assert not (run / "train.json").exists()
    assert {path.name for path in run.iterdir()} <= {"checkpoint.safetensors", "metrics.jsonl"}

    code, _, err = call(f"train {tmp_path / 'recipe.toml'} --out {run} --resume")
    assert code == 0, err
    assert TrainRecord.read(run / "train.json").epochs[-1].step == 60


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_ctrl_c_in_a_bench_leaves_no_record_and_no_process(finished, tmp_path):
    boards: set[int] = set()

    def two_boards(pid: int) -> bool:
        boards.clear()
        boards.update(_children(pid))
        return len(boards) == 2

    interrupt(f"bench {finished.run} --pairs 1000 -o bench.json", tmp_path, two_boards)
    assert list(tmp_path.iterdir()) == []
    deadline_s = time.monotonic() + _LAST_BOARD_S
    while alive := [pid for pid in boards if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline_s, f"still running: {alive}"
        time.sleep(0.01)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except OSError:  # the thread has just ended
            continue
    return found
