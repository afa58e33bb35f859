"""Boards on the command line: a card, a check, what setup installs, and every command that measures, there."""

from __future__ import annotations

import json
import os
import shlex
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
import pytest

from rankfold.devices import card, local, ssh, wheels
from rankfold.devices.transport import Outfit
from rankfold.records import Bench, Explanation, Plan
from rankfold.runtime import latency, serving, turns

from .conftest import SOAK
from .export.explain.test_matching import network
from .making import RANKFOLD
from .servers import Server, on
from .test_cli_child import alive, interrupted

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
    assert (code, said) == (0, f"{card.user_folder() / 'pi.toml'}\n"), err
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
    assert "failed   processor    device 'other' should be aarch64, found x86_64; correct its card" in said


def interpreter(folder: Path, line: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("line", "failed", "found"),
    [
        ("exit 127", "connection", r"lacks a program"),
        ("echo 3.7.9", "python", "3.7.9; install Python 3.8 or newer there, name it in the card"),
        (f'exec {sys.executable} -S "$@"', "numpy, onnxruntime, wheels", "not installed; rankfold devices setup pi"),
        ("test $1 = -c || kill -4 $$; echo 3.11.2", "connection", "was killed by SIGILL"),
    ],
)
@on("dropbear")
def test_a_board_that_is_not(board: Server, folder: Path, call, monkeypatch, line: str, failed: str, found: str):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert call(f"devices add pi {options(board, python=interpreter(folder, line))}")[0] == 0
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
    assert call(f"devices add pi {options(board, workdir='my boards')}")[0] == 0
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
    ],
)
def test_wheels_follow_the_c_library(libc: str | None, tags: list[str]):
    found = Outfit(python_version="3.9.2", architecture="x86_64", libc=libc, versions={}, free_bytes=1, time_s=0.0)
    assert wheels.platform_tags(found)[: len(tags)] == tags


# --- measuring there -----------------------------------------------------------------------------------------


@on("dropbear")
def test_bench_goes_on_when_the_connection_was_cut(added: Server, folder: Path, call, monkeypatch):
    monkeypatch.setattr(serving, "WAITS_S", (0.1, 0.2, 0.4))
    cuts: list[int] = []
    threading.Thread(target=cut_in_a_pair, args=(added, cuts), daemon=True).start()
    code, _, err = call("bench dense.onnx small.onnx --device pi --pairs 2")
    assert code == 0, err
    assert cuts == [1]
    record = Bench.read(folder / "bench.json")
    assert [pair.seed for pair in record.pairs] == [0, 1]
    assert record.context.device == "pi"
    assert added.programs("/files/") == []


def cut_in_a_pair(board: Server, cuts: list[int]) -> None:
    """As soon as two processes have lived for a while: a shell and Python each."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if len(board.programs("/files/")) == 4:
            time.sleep(0.3)
            cuts.append(board.cut())
            return
        time.sleep(0.05)


@on("sshd")
def test_ctrl_c_leaves_nothing_here_and_nothing_there(added: Server, folder: Path):
    """As a terminal sends it; what is started there has no part in it, and the shared connection closes too."""
    scratch, mark = folder / "scratch", uuid.uuid4().hex
    added.cut()
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch), "RANKFOLD_TEST": mark}
    command = [*RANKFOLD, "bench", "dense.onnx", "small.onnx", "--device", "pi", "--pairs", "100", "-o", "here.json"]

    def pair_has_begun() -> bool:
        return len(added.programs("/files/")) >= 4  # a shell and Python each

    complaint = interrupted(command, environment, folder, pair_has_begun)
    assert complaint.startswith("rankfold: interrupted; nothing half-written is left")
    deadline = time.monotonic() + GONE_S
    while added.programs("/files/") or alive(mark) or connected(added):
        assert time.monotonic() < deadline, "something stays"
        time.sleep(0.05)
    assert list(scratch.iterdir()) == []
    assert not (folder / "here.json").exists()


def connected(board: Server) -> bool:
    """Whether somebody keeps a connection open for whoever comes."""
    check = ["ssh", "-F", str(board.config), "-O", "check", f"-oControlPath={ssh._sockets()}/%C", "board"]
    return subprocess.run(check, capture_output=True, check=False).returncode == 0


@on("sshd")
def test_a_table_is_of_the_board(added: Server, folder: Path, call):
    code, said, err = call("latency-table fill dense.onnx --device pi")
    assert code == 0, err
    assert "spatial" in said
    assert call("latency-table show dense.onnx --device pi")[1] == said
    assert added.programs("/files/") == []


@on("dropbear")
def test_evaluate_runs_there_on_data_that_is_sent_once(added: Server, folder: Path, call):
    images = 30 * np.random.default_rng(0).standard_normal((40, 3, 16, 16)).astype(np.float32)
    np.savez("data.npz", images=images, labels=np.arange(40) % 5)
    for device in ("host", "pi", "pi"):
        code, _, err = call(f"evaluate small.onnx --data data.npz --device {device} -o {device}.json")
        assert code == 0, err
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
