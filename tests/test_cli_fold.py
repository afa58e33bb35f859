"""fold, model and evaluate on the command line: what they print, what they leave, and one line for what is wrong."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from rankfold.records import ModelScore, Parity, Plan

from .export.conftest import chain
from .export.written import LOOP, OPEN, TOKENS, parsed
from .making import environment, rankfold


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Some models and data; read only."""
    folder = tmp_path_factory.mktemp("models")
    onnx.save(chain().model, folder / "chain.onnx")
    for name, text in (("tokens", TOKENS), ("open", OPEN), ("loop", LOOP)):
        onnx.save(parsed(text), folder / f"{name}.onnx")
    endless = parsed(LOOP)
    trips = next(one for one in endless.graph.initializer if one.name == "trips")
    trips.CopyFrom(onnx.numpy_helper.from_array(np.array(2**62), "trips"))
    onnx.save(endless, folder / "endless.onnx")
    (folder / "cut.onnx").write_bytes((folder / "chain.onnx").read_bytes()[:900])
    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, 3, 12, 10)).astype(np.float32)
    np.savez(folder / "data.npz", input=images, labels=rng.integers(0, 5, 40))
    np.savez(folder / "unlabelled.npz", input=images)
    np.savez(folder / "tokens.npz", tokens=rng.integers(0, 11, (2, 9)), mask=np.ones((2, 9), int))
    return folder


@pytest.fixture(scope="module")
def folded(models, tmp_path_factory) -> Path:
    """chain.onnx after `rankfold fold`."""
    out = tmp_path_factory.mktemp("folded") / "small.onnx"
    done = rankfold(models, "fold", "chain.onnx", "-o", str(out), "--tile", "1", "--target-ort", "1.17")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "3 channels folded" in done.stdout
    assert "2 dead channels folded" in done.stdout
    return out


def test_fold_leaves_three_files(folded):
    assert {path.name for path in folded.parent.iterdir()} >= {"small.onnx", "small.plan.json", "small.parity.json"}
    assert all(check.passed for check in Parity.read(folded.with_name("small.parity.json")).checks)
    assert Plan.read(folded.with_name("small.plan.json")).tile == 1
    assert onnx.load(folded).ir_version <= 9


@pytest.mark.parametrize(
    "arguments",
    [
        "tokens.onnx --shape tokens:1x7",
        "tokens.onnx --inputs tokens.npz",
        "open.onnx --shape image:1x3x10x9 --tile auto",
        "loop.onnx",
    ],
)
def test_fold_takes_inputs_as_they_are(models, tmp_path, call, monkeypatch, arguments):
    monkeypatch.chdir(models)
    code, _, err = call(f"fold {arguments} -o {tmp_path / 'out.onnx'}")
    assert code == 0, err
    assert (tmp_path / "out.onnx").exists()


BAD = [
    ("fold none.onnx", 2, "cannot read none.onnx: No such file"),
    ("fold cut.onnx", 2, "cut.onnx: expected an ONNX model, found"),
    ("fold data.npz", 2, "data.npz: expected an ONNX model, found"),
    (
        "fold open.onnx",
        2,
        "open.onnx: input 'image': axis 2 has no fixed size; give one, such as --shape image:1x3x224x",
    ),
    ("fold open.onnx --shape image", 2, "--shape 'image': expected NAME:SIZExSIZE"),
    ("fold open.onnx --shape x:1x3x9x9", 2, "open.onnx: --shape names no input 'x'; the model has 'image', 'more'"),
    ("fold tokens.onnx --inputs none.npz", 2, "cannot read none.npz: No such file"),
    ("fold tokens.onnx --inputs data.npz", 2, "the inputs have no array 'tokens'; found input, labels"),
    ("fold chain.onnx --target-ort 1.2", 2, "--target-ort 1.2: expected 1.16 or newer"),
    ("fold chain.onnx --tile 0", 2, "--tile '0': expected auto or a whole number"),
    ("fold chain.onnx --device pi99", 2, "unknown device 'pi99'"),
    ("fold endless.onnx --limit-s 1", 2, "no result within 1 s; the file may loop for ever, or raise --limit-s"),
    (
        "fold open.onnx --shape image:1x3x6000x6000 --memory-gb 1",
        2,
        "it needs more than 0.9 GiB of memory; give smaller",
    ),
    ("model none.onnx", 2, "cannot read none.onnx"),
    ("model cut.onnx", 2, "cut.onnx: expected an ONNX model, found"),
    ("evaluate none.onnx --data data.npz", 2, "cannot read none.onnx"),
    ("evaluate chain.onnx", 2, "give --data, or --metric with a command"),
    ("evaluate chain.onnx --data none.npz", 2, "cannot read none.npz"),
    ("evaluate chain.onnx --data unlabelled.npz", 2, "it has no labels; give --reference ORIGINAL.onnx"),
    ("evaluate chain.onnx --data data.npz --mean x", 2, "--mean 'x': expected numbers such as"),
    ("evaluate chain.onnx --data data.npz --size 3y", 2, "--size '3y': expected height x width"),
    ("evaluate chain.onnx --metric eval.py", 2, "expected a command with {model} in it"),
    ("evaluate chain.onnx --metric 'false {model}'", 1, "false ended with status 1"),
    ("bench open.onnx", 2, "only the first dimension may be open; see --shape"),
    ("bench open.onnx --shape image:3", 2, "found [3]; give one that fits"),
    ("bench tokens.onnx --inputs data.npz", 2, "expected an npz file with tokens, mask"),
]


# Every row in a fork of one interpreter, which has imported what the commands do: a tenth of the time.
DRIVER = """
import json, os, sys, traceback
import rankfold.export.describe, rankfold.export.fold, rankfold.export.metric, rankfold.runtime.measure
import rankfold.stages, rankfold.onnx_stages, rankfold.compress_stages, rankfold.quantize_stages, typer.rich_utils
from rankfold.cli import main
rows = json.load(sys.stdin)
for index, row in enumerate(rows):
    child = os.fork()
    if child == 0:
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{row['folder']}/{name}", os.O_WRONLY | os.O_CREAT), descriptor)
        sys.argv = ["rankfold", *row["arguments"]]
        try:
            main()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code)
        except BaseException:
            traceback.print_exc()
            os._exit(99)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes(models, tmp_path_factory) -> dict[str, tuple[int, str, list[str]]]:
    """Exit code, stderr and files left, for every row of BAD."""
    rows = []
    for line, _, _ in BAD:
        folder, arguments = tmp_path_factory.mktemp("row"), shlex.split(line)
        if arguments[0] in ("fold", "bench"):
            arguments += ["-o", str(folder / "new" / "out.onnx")]
        rows.append({"folder": str(folder), "arguments": arguments})
    command = [sys.executable, "-P", "-c", DRIVER]
    done = subprocess.run(
        command, cwd=models, input=json.dumps(rows), capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    codes = [int(code) for code in done.stdout.split()]
    folders = [Path(row["folder"]) for row in rows]
    left = [sorted(path.name for path in folder.rglob("*") if path.is_file()) for folder in folders]
    said = [(folder / "err").read_text() for folder in folders]
    return dict(zip((line for line, _, _ in BAD), zip(codes, said, left, strict=True), strict=True))


@pytest.mark.parametrize(("line", "code", "says"), BAD, ids=[row[0] for row in BAD])
def test_what_is_wrong_is_one_line_and_no_file(outcomes, line, code, says):
    ended, said, left = outcomes[line]
    assert ended == code, said
    assert said.startswith("rankfold: ")
    assert said.count("\n") == 1
    assert says in said
    assert left == ["err", "out"]


def test_model_says_what_is_in_a_file(models, call, monkeypatch):
    done = rankfold(models, "model", "chain.onnx")
    assert done.returncode == 0, done.stderr
    assert "2 dead channels folded" in done.stdout
    assert "float32 batch×3×12×10" in done.stdout
    monkeypatch.chdir(models)
    code, said, err = call("model chain.onnx --json")
    assert code == 0, err
    assert [row["name"] for row in json.loads(said)["layers"]] == ["a", "b", "fc"]


def test_evaluate_by_labels_by_the_original_and_by_a_command(models, folded, tmp_path, call, monkeypatch):
    labels = rankfold(models, "evaluate", "chain.onnx", "--data", "data.npz", "-o", str(tmp_path / "score.json"))
    assert labels.returncode == 0, labels.stderr
    score = ModelScore.read(tmp_path / "score.json")
    assert f"{score.value:.2%} ({score.low:.2%} to {score.high:.2%}), top-1, 40 inputs of data" in labels.stdout
    monkeypatch.chdir(models)
    _, agreed, _ = call(f"evaluate {folded} --data unlabelled.npz --reference chain.onnx")
    assert "small.onnx: 100.00%" in agreed
    assert "there are no labels, so this says nothing about accuracy" in agreed
    command = shlex.quote(f"{sys.executable} -c 'print(3); print(0.5)' {{model}}")
    assert "small.onnx: 0.5, command: " in call(f"evaluate {folded} --metric {command}")[1]


def test_bench_takes_inputs_as_they_are(models, tmp_path, call, monkeypatch):
    monkeypatch.setattr("rankfold.runtime.turns._PAIR_S", 0.1)
    monkeypatch.chdir(models)
    for arguments in ("open.onnx --shape image:1x3x10x9", "tokens.onnx --inputs tokens.npz"):
        code, _, err = call(f"bench {arguments} --pairs 2 -o {tmp_path / 'bench.json'}")
        assert code == 0, err
    shapes = json.loads((tmp_path / "bench.json").read_text())["context"]["input_shapes"]
    assert shapes == {"tokens": [2, 9], "mask": [2, 9]}
