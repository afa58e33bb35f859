"""Boards on the command line: a card, a check, what setup installs, and every command that measures, there."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
import uuid
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from rankfold.devices import card, local, ssh, wheels
from rankfold.devices.reservation import KEEPER, Reserved
from rankfold.devices.ssh import SshTransport
from rankfold.devices.transport import Outfit, Session
from rankfold.files import sha256_of
from rankfold.records import Bench, Done, Explanation, Pair, Plan
from rankfold.runtime import latency, measure, serving, turns

from .conftest import ROOT, SOAK
from .export.explain.test_matching import network
from .making import RANKFOLD
from .servers import Server, changed, interpreter, on
from .test_cli_child import alive, interrupted

CUTS = 20 if SOAK else 4
PAIRS = CUTS // 2
MOMENTS_S = 0.7  # on a fast machine about the time of a pair
PAIR = 6  # processes there: a shell and Python each for two models and the keeper
GONE_S = 10.0  # an idle connection would last for twice as long


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Two models, a configuration folder of one's own, and nothing measured on this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(local.LocalTransport, "launch", lambda self: pytest.fail("measured here"))
    monkeypatch.setattr(latency, "ROUNDS", latency.ROUNDS // 40)
    monkeypatch.setattr(turns, "_PAIR_S", turns._PAIR_S / 20)
    onnx.save(ir.to_proto(network(16, 32)), tmp_path / "dense.onnx")
    onnx.save(ir.to_proto(network(16, 16)), tmp_path / "small.onnx")
    return tmp_path


def options(board: Server, **changes: str) -> str:
    told = {"host": "board", "ssh-config": str(board.config), "python": sys.executable, **changes}
    return " ".join(f"--{key}={shlex.quote(value)}" for key, value in told.items())


@pytest.fixture
def added(board: Server, folder: Path, call) -> Server:
    """With a card for it, `pi`."""
    code, said, err = call(f"devices add pi --like x86-64 {options(board)}")
    assert (code, said) == (0, f"{card.user_folder() / 'pi.toml'}\nnext: rankfold devices setup pi\n"), err
    return board


# --- cards ---------------------------------------------------------------------------------------------------


def test_add_asks_and_writes_a_card(folder: Path, call, monkeypatch):
    answers = iter(["pi@192.168.1.20", "pi4"])
    monkeypatch.setattr("typer.prompt", lambda text, default=None: next(answers))
    assert call("devices add my-pi --about 'with a \"fan\" ü\x7f'")[0] == 0
    found = card.find("my-pi")
    assert (found.host, found.user, found.port, found.tested) == ("192.168.1.20", "pi", None, "never")
    assert (found.about, found.expected_architecture) == ('with a "fan" ü\x7f', "aarch64")
    assert "my-pi" in call("devices list")[1]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("pi --host=-oProxyCommand=id", "the card would be wrong: 'host'"),
        ("pi --host 'a\nb'", "the card would be wrong: 'host'"),
        ("pi --host 'two words'", "the card would be wrong: 'host'"),
        ("pi --host=-l@board", "the card would be wrong: 'user'"),
        ("pi --host board --port 70000", "the card would be wrong: 'port'"),
        ("pi --host board --workdir '~/x'", "the card would be wrong: 'workdir'"),
        ("Pi --host board", "the card would be wrong: 'name'"),
        ("../pi --host board", "the card would be wrong: 'name'"),
        ("pi --host board --like pi99", "unknown device 'pi99'"),
    ],
)
def test_a_wrong_card_is_not_written(folder: Path, call, given: str, match: str):
    code, said, err = call(f"devices add {given}")
    assert (code, said) == (2, "")
    assert match in err
    assert not card.user_folder().exists()


def test_a_card_is_not_written_over(folder: Path, call):
    assert call("devices add pi --host one")[0] == 0
    code, _, err = call("devices add pi --host two")
    assert code == 2
    assert f"there is a card {card.user_folder() / 'pi.toml'}; edit or remove it" in err
    assert card.find("pi").host == "one"


def test_a_card_of_ones_own_is_removed_and_no_other_file(folder: Path, call):
    assert call("devices add pi --host one")[0] == 0
    other = card.user_folder().parent / "other.toml"
    other.write_text("kept")
    for name in ("pi4", "../other", "pi99"):
        code, _, err = call(f"devices remove {name}")
        assert code == 2
        assert "expected a card of your own" in err
    assert call("devices remove pi") == (0, f"removed {card.user_folder() / 'pi.toml'}\n", "")
    assert "pi" not in card.names()
    assert other.read_text() == "kept"


def test_the_cards_that_come_along_were_tested_by_nobody_but_what_is_here():
    shipped = {path.stem: tomllib.loads(path.read_text()) for path in Path(card.__file__).parent.glob("cards/*.toml")}
    tested = {name for name, told in shipped.items() if told["tested"] != "never"}
    assert tested == {name for name, told in shipped.items() if told["transport"] != "ssh"}
    assert {"pi3", "pi4", "pi5", "zero2w", "jetson-orin-nano", "imx8mp", "rk3588", "aarch64", "x86-64"} <= set(shipped)
    assert all(card.find(name).name == name for name in shipped)


# --- check and setup -----------------------------------------------------------------------------------------


@on("sshd")
def test_a_board_that_is_fit_and_one_that_is_another(added: Server, call):
    code, said, err = call("devices check pi")
    assert code == 0, err
    states = {line.split()[1]: line.split()[0] for line in said.splitlines()}
    fine = {"connection", "python", "numpy", "onnxruntime", "clock", "processor", "providers"}
    assert fine <= {item for item, state in states.items() if state == "ok"}
    assert {"memory", "disk"} <= set(states)
    assert call(f"devices add other --like pi4 {options(added)}")[0] == 0
    code, said, _ = call("devices check other")
    assert code == 3
    wrong = "device 'other' should be aarch64, found x86_64; correct its card"
    assert f"failed   processor    {wrong}" in said
    code, said, err = call("devices setup other")
    assert (code, said) == (3, "")
    assert wrong in err


@pytest.mark.parametrize(
    ("line", "failed", "found"),
    [
        ("exit 127", "connection", r"lacks a program"),
        ("echo 3.7.9", "python", "3.7.9; install Python 3.8 or newer there, name it in the card"),
        (f'exec {sys.executable} -S "$@"', "numpy, onnxruntime, wheels", "not installed; rankfold devices setup pi"),
        ("test $1 = -c || kill -4 $$; echo 3.11.2", "connection", "was killed by SIGILL: its processor lacks"),
        (f"echo {'9' * 5000}.1", "python", f"{'9' * 60}; install Python 3.8"),
    ],
)
@on("dropbear")
def test_a_board_that_is_not(board: Server, folder: Path, call, monkeypatch, line: str, failed: str, found: str):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert call(f"devices add pi --like x86-64 {options(board, python=interpreter(folder, line))}")[0] == 0
    code, said, err = call("devices check pi --json")
    findings = [json.loads(line) for line in said.splitlines()]
    assert code == 3
    assert err == f"rankfold: device 'pi' is not ready: {failed}\n"
    wrong = [one for one in findings if one["state"] == "failed"]
    assert ", ".join(one["item"] for one in wrong) == failed
    assert all(one["remedy"] for one in wrong)
    assert found in f"{wrong[0]['found']}; {wrong[0]['remedy']}"
    if failed.endswith("wheels"):
        code, _, err = call("devices setup pi")
        assert code == 3
        assert "no wheels of numpy and onnxruntime for Python 3." in err
        assert not (board.home / ".cache" / "rankfold" / "venv").exists()


def wheel(folder: Path, name: str, version: str) -> None:
    """A package that is nothing but its version."""
    about, record = f"{name}-{version}.dist-info", ""
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}/__init__.py", f"__version__ = {version!r}\n")
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{about}/RECORD", record)


@on("dropbear")
def test_setup_installs_from_here_into_an_environment_of_its_own(board: Server, folder: Path, call, monkeypatch):
    wheel(folder, "numpy", "9.8.7")
    wheel(folder, "onnxruntime", "1.99.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    assert call(f"devices add pi --like x86-64 {options(board, workdir='my boards')}")[0] == 0
    for _ in range(2 if SOAK else 1):  # again, over the one that is there
        code, said, err = call("devices setup pi")
        assert code == 0, err
        assert said.splitlines()[-1] == "numpy 9.8.7, onnxruntime 1.99.0"
        assert (board.home / "my boards" / "venv" / "pyvenv.cfg").exists()
        assert sorted(path.name for path in (board.home / "my boards").iterdir()) == ["files", "venv"]
        assert {path.suffix for path in (board.home / "my boards" / "files").iterdir()} == {".py"}
    assert "ok       onnxruntime  1.99.0" in call("devices check pi")[1]


def test_this_machine_is_not_set_up(folder: Path, call):
    code, _, err = call("devices setup host")
    assert code == 2
    assert "device 'host' is this machine; install numpy and onnxruntime here with pip" in err


@pytest.mark.parametrize(
    ("libc", "tags"),
    [
        ("glibc 2.19", ["manylinux_2_19_x86_64", "manylinux_2_18_x86_64", "manylinux_2_17_x86_64"]),
        (None, ["any"]),
        ("musl 1.2", ["any"]),
        ("glibc 2", ["any"]),
        ("glibc 2.99999999999", ["any"]),
    ],
)
def test_wheels_follow_the_c_library(libc: str | None, tags: list[str]):
    found = Outfit(python_version="3.9.2", architecture="x86_64", libc=libc, versions={}, free_bytes=1, time_s=0.0)
    assert wheels.platform_tags(found)[: len(tags)] == tags


# --- measuring there -----------------------------------------------------------------------------------------


@on("dropbear")
def test_bench_loses_no_pair_when_the_connection_is_cut_at_any_moment(added: Server, folder: Path, call, monkeypatch):
    monkeypatch.setattr(serving, "WAITS_S", (0.1,) * 30)
    finished: list[Pair] = []
    take = measure._take_turns
    monkeypatch.setattr(measure, "_take_turns", lambda *given: kept(take(*given), finished))
    over = threading.Event()
    cutting = threading.Thread(target=cut_at_random, args=(added, CUTS, over))
    cutting.start()
    code, _, err = call(f"bench dense.onnx small.onnx --device pi --pairs {PAIRS} --governor performance")
    over.set()
    cutting.join()
    assert code == 0, err
    record = Bench.read(folder / "bench.json")
    assert record.pairs == finished
    assert [pair.seed for pair in record.pairs] == list(range(PAIRS))
    assert record.context.device == "pi"
    weathers = record.context.weather_before, record.context.weather_after
    assert [weather and weather.cores[0].governor for weather in weathers] == ["performance", "performance"]
    assert added.governor.read_text() == "ondemand"
    assert added.programs("/files/") == []
    assert not list((added.home / ".cache").rglob("*.part"))


def kept(done: tuple[Pair, dict[str, Session]], finished: list[Pair]) -> tuple[Pair, dict[str, Session]]:
    finished.append(done[0])
    return done


def cut_at_random(board: Server, cuts: int, over: threading.Event) -> None:
    """From the first file on: in uploads, starts, loading, turns, between any two of them, wherever it falls."""
    moments = random.Random(0)
    while not list((board.home / ".cache" / "rankfold").glob("files/*.onnx*")) and not over.wait(0.01):
        pass
    while cuts and not over.wait(moments.uniform(0.0, MOMENTS_S)):
        cuts -= bool(board.cut())
    assert not cuts, "it was over before"


HOSTILE = "<script>alert(1)</script>\x1b]0;owned\x07\x1b[2J|`$(touch here)"
FORGED = f"""
hostile = {HOSTILE!r}
probe, weather, per_node, clock = board.probe, board.weather, board.per_node, iter(range(99))
named = dict.fromkeys(["cpu_model", "os", "kernel", "numpy_version", "python_version"], hostile)
board.probe = lambda request: {{**probe(request), **named, "isa": [hostile]}}
def changing(request):
    now = weather(request)
    cores = [{{**core, "governor": hostile}} for core in now["cores"]]
    return {{**now, "cores": cores, "throttled": hostile + str(board.time.time()), "temperatures_c": {{hostile: 99.0}}}}
board.weather = changing
def renamed(events, runs):
    found = per_node(events, runs)
    return {{**found, "nodes": [{{**node, "name": hostile, "op": hostile}} for node in found["nodes"]]}}
board.per_node = renamed
"""


@on("sshd")
def test_what_a_board_says_is_shown_and_never_obeyed(board: Server, folder: Path, call):
    assert call(f"devices add pi --like x86-64 {options(board, python=changed(folder, FORGED))}")[0] == 0
    said = ""
    for line in (
        "devices check pi",
        "devices probe pi",
        "bench small.onnx --device pi --pairs 2 --operators",
        "report bench.json",
    ):
        code, out, err = call(line)
        assert code == 0, err
        said += out + err
    assert "<script>alert(1)</script>" in said, "it does get there"
    assert not [c for c in said if not c.isprintable() and c != "\n"]
    for name in ("report.html", "report.md"):
        page = (folder / name).read_text(encoding="utf-8")
        assert "&lt;script&gt;" in page, name
        assert "<script>alert" not in page, name
        assert not [c for c in page if not c.isprintable() and c != "\n"], name
    assert not list(folder.rglob("here"))
    assert not list(board.home.rglob("here"))


@on("dropbear")
def test_a_board_without_python_has_a_runner_in_c(board: Server, folder: Path, call):
    runner = compiled(folder)
    assert call(f"devices add pi --like x86-64 --runner {runner} {options(board, python='/no/python')}")[0] == 0
    code, said, err = call("devices check pi")
    assert code == 0, err
    assert f"ok       onnxruntime  {onnxruntime.__version__}" in said
    code, _, err = call("bench dense.onnx small.onnx --device pi --pairs 2")
    assert code == 0, err
    record = Bench.read(folder / "bench.json")
    assert record.context.facts.python_version == "none"
    assert record.context.input_shapes == {"input": [1, 3, 16, 16]}
    assert record.comparisons[0].pairs == 2
    for line, why in {
        "bench small.onnx --device pi --session-config mlas.disable_kleidiai=1": "it takes no --session",
        "bench small.onnx --device pi --shape input:1x3x16x16": "it takes no --shape",
        "latency-table fill small.onnx --device pi": "a runner in C does not know: contest",
        "devices setup pi": "has a runner of its own",
    }.items():
        code, _, err = call(line)
        assert code == 2
        assert why in err
    assert board.programs(runner) == []


@on("dropbear")
def test_a_runner_that_is_killed_costs_no_pair_that_was_done(board: Server, folder: Path, call):
    runner, part = compiled(folder), folder / "bench.json.part"
    assert call(f"devices add pi --like x86-64 --runner {runner} {options(board)}")[0] == 0
    killing = threading.Thread(target=kill_after_a_pair, args=(board, runner, part))
    killing.start()
    code, said, err = call("bench dense.onnx small.onnx --device pi --pairs 4")
    killing.join()
    assert (code, said) == (3, "")
    assert "was killed by SIGKILL" in err
    remedy = "go on after them with the same options and --device pi -o bench.json --resume"
    assert err.endswith(f"pairs are kept in bench.json.part; {remedy}\n")
    first = Done.model_validate_json(part.read_text().splitlines()[1])
    assert not (folder / "bench.json").exists()
    assert call("bench dense.onnx small.onnx --device pi --pairs 3 --resume")[0] == 2
    code, _, err = call("bench dense.onnx small.onnx --device pi --pairs 4 --resume")
    assert code == 0, err
    record = Bench.read(folder / "bench.json")
    assert [pair.seed for pair in record.pairs] == [0, 1, 2, 3]
    assert record.pairs[0] == first.pair
    assert not part.exists()
    assert board.programs(runner) == []


def kill_after_a_pair(board: Server, runner: str, part: Path) -> None:
    """A shell and a runner each; the runner came after its shell."""
    deadline = time.monotonic() + 60
    alive: list[int] = []
    while not (part.exists() and len(alive) == 4) and time.monotonic() < deadline:
        alive = board.programs(runner)
    os.kill(max(alive), signal.SIGKILL)


def compiled(folder: Path) -> str:
    """docs/board.c against the library in onnxruntime's own wheel."""
    compiler, capi = shutil.which("cc"), Path(onnxruntime.__file__).parent / "capi"
    libraries = list(capi.glob("libonnxruntime.so.*"))
    if compiler is None or not libraries:
        pytest.skip("docs/board.c needs a C compiler and a wheel of onnxruntime that has libonnxruntime.so")
    (folder / "libonnxruntime.so.1").symlink_to(libraries[0])
    header = os.environ.get("ONNXRUNTIME_INCLUDE") or ROOT / "tests" / "devices" / "capi"
    command = [compiler, "-std=c99", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", ROOT / "docs" / "board.c"]
    command += ["-I", header, "-L", folder, "-l:libonnxruntime.so.1", "-Wl,-rpath,$ORIGIN", "-o", folder / "runner"]
    command += ["-DWARMUP_S=0.02"]
    subprocess.run(command, check=True)
    return str(folder / "runner")


@on("sshd")
def test_ctrl_c_leaves_nothing_here_and_nothing_there(added: Server, folder: Path):
    """As a terminal sends it; what is started there has no part in it, and the shared connection closes too."""
    scratch, mark = folder / "scratch", uuid.uuid4().hex
    added.cut()
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch), "RANKFOLD_TEST": mark}
    command = [*RANKFOLD, "bench", "dense.onnx", "small.onnx", "--device", "pi", "--pairs", "100", "-o", "here.json"]
    command += ["--governor", "performance"]

    def pair_has_begun() -> bool:
        return len(added.programs("/files/")) >= PAIR and added.governor.read_text() == "performance"

    complaint = interrupted(command, environment, folder, pair_has_begun)
    assert complaint.startswith("rankfold: interrupted; nothing half-written is left")
    deadline = time.monotonic() + GONE_S
    while added.programs("/files/") or alive(mark) or connected(added):
        assert time.monotonic() < deadline, "something stays"
        time.sleep(0.05)
    assert added.governor.read_text() == "ondemand"
    assert list(scratch.iterdir()) == []
    assert not (folder / "here.json").exists()


def leave_when_awaited(board: Server, other: Reserved) -> None:
    """As soon as a second keeper, a shell and Python, has been there for a while."""
    deadline = time.monotonic() + 60
    while len(board.programs(sha256_of(KEEPER))) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    other.__exit__()


def last_keeper(board: Server) -> int:
    """The process that has had the board's lock at last."""
    return json.loads((board.folder / "tmp" / "rankfold.lock").read_text())["pid"]


def connected(board: Server) -> bool:
    """Whether somebody keeps a connection open for whoever comes."""
    check = ["ssh", "-F", str(board.config), "-O", "check", f"-oControlPath={ssh._sockets()}/%C", "board"]
    return subprocess.run(check, capture_output=True, check=False).returncode == 0


@on("sshd")
def test_a_table_is_of_the_board_when_nobody_else_measures_there(added: Server, folder: Path, call, monkeypatch):
    monkeypatch.setattr("rankfold.terminal.PLAIN_EVERY_S", 0.0)
    other = Reserved(SshTransport(added.card()), "pi", None, pytest.fail).__enter__()
    threading.Thread(target=leave_when_awaited, args=(added, other), daemon=True).start()
    code, said, err = call("latency-table fill dense.onnx --device pi")
    assert code == 0, err
    assert re.search(r"^pi: 0/1 waiting: \S+@\S+ measures on 'pi' since ... \d\d:\d\d \(process \d+ there\)", err)
    assert "spatial" in said
    keeper = last_keeper(added)
    assert call("latency-table show dense.onnx --device pi")[1] == said
    assert last_keeper(added) == keeper, "only what measures has the board for itself"
    assert added.programs("/files/") == []


@on("dropbear")
def test_evaluate_runs_there_on_data_that_is_sent_once(added: Server, folder: Path, call):
    images = 30 * np.random.default_rng(0).standard_normal((40, 3, 16, 16)).astype(np.float32)
    np.savez("data.npz", images=images, labels=np.arange(40) % 5)
    keepers = set()
    for device in ("host", "pi", "pi"):
        code, _, err = call(f"evaluate small.onnx --data data.npz --device {device} -o {device}.json")
        assert code == 0, err
        keepers |= {last_keeper(added)} if device == "pi" else set()
    assert len(keepers) == 2
    assert (folder / "pi.json").read_bytes() == (folder / "host.json").read_bytes()
    assert 0 < json.loads((folder / "pi.json").read_text())["value"] < 1
    assert len(list((added.home / ".cache" / "rankfold" / "files").glob("*.npz"))) == 2  # 32 inputs, and 8
    assert added.programs("/files/") == []
    code, _, err = call("evaluate small.onnx --metric 'cat {model}' --device pi")
    assert code == 2
    assert "--metric runs a command here; leave out --device" in err


@pytest.mark.skipif(not SOAK, reason="takes half a minute: in soak")
def test_a_plan_is_of_the_board(added: Server, folder: Path, call):
    code, _, err = call("compress dense.onnx -o out.onnx --budget 1 --form spatial --device pi")
    assert code == 0, err
    timing = Plan.read(folder / "out.plan.json").timing
    assert timing is not None
    assert timing.device == "pi"
    assert added.programs("/files/") == []


@pytest.mark.skipif(not SOAK, reason="takes half a minute: in soak")
def test_an_explanation_is_of_the_board(added: Server, folder: Path, call):
    code, _, err = call("explain dense.onnx small.onnx --device pi --time 1s")
    assert code == 0, err
    assert Explanation.read(folder / "explanation.json").device == "pi"
    assert added.programs("/files/") == []
