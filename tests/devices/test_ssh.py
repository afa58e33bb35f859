"""The transport over ssh, against real servers: what is sent, what ends, and what a person is told."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rankfold.devices import probe, ssh
from rankfold.devices.board import HUNG_UP_LIMIT_S
from rankfold.devices.ssh import SshTransport
from rankfold.devices.transport import serve, time_block
from rankfold.errors import DeviceError, InputError, Unreachable

from ..conftest import SOAK
from ..servers import Server, on

END_S = 5.0 + HUNG_UP_LIMIT_S  # for a process to end; it takes a tenth of a second
HANGING = {"command": "paced", "rate_hz": 1e-3, "frames": 2}  # the first frame is due in a quarter of an hour
BOARD = "/files/"  # board.py's command line has it, and no other of the user's


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "-odd\nname; 'quoted' $(touch here) ü.ONNX"
    path.write_bytes(probe.TILE_MODEL)
    return path


def served(process: Any, placed: str) -> Any:
    request = {"model": placed, "threads": 1, "provider": "cpu", "session_config": {}, "cores": [], "seed": 0}
    serve(process, request)
    return process


def wait_until_gone(board: Server) -> None:
    deadline = time.monotonic() + END_S
    while (left := board.programs(BOARD)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


# --- files ---------------------------------------------------------------------------------------------------


def test_a_file_is_sent_once_and_called_by_its_content(board: Server, model: Path):
    workdir = "a 'b' \"c\" $(touch here) `d` ü"
    card = board.card(workdir=workdir)
    placed = SshTransport(card).place(model)
    digest = hashlib.sha256(probe.TILE_MODEL).hexdigest()
    assert placed == f"{workdir}/files/{digest}.onnx"
    there = board.home / placed
    assert there.read_bytes() == probe.TILE_MODEL
    assert stat.S_IMODE(there.parent.stat().st_mode) == 0o700
    first = there.stat().st_ino
    copy = model.with_name("copy.onnx")
    copy.write_bytes(probe.TILE_MODEL)
    assert SshTransport(card).place(copy) == placed
    assert there.stat().st_ino == first
    assert [path.name for path in there.parent.iterdir()] == [there.name]
    assert not list(board.home.rglob("here"))


def test_an_upload_goes_on_where_it_was_cut(board: Server, tmp_path: Path):
    content = os.urandom(200_000)
    path = tmp_path / "big.onnx"
    path.write_bytes(content)
    part = board.home / ".cache" / "rankfold" / "files" / f"{hashlib.sha256(content).hexdigest()}.onnx.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(bytes(100_000))  # not what was sent: if all were sent again, nobody would notice
    with pytest.raises(DeviceError, match="it arrived damaged"):
        SshTransport(board.card()).place(path)
    assert not part.exists()
    part.write_bytes(content[:100_000])
    placed = SshTransport(board.card()).place(path)
    assert (board.home / placed).read_bytes() == content
    assert not part.exists()


@pytest.mark.skipif(not SOAK, reason="sends 150 MB twice: in soak")
def test_an_upload_whose_connection_is_cut_leaves_what_has_arrived(board: Server, tmp_path: Path):
    path = tmp_path / "large.onnx"
    path.write_bytes(os.urandom(1 << 20) * 150)
    files = board.home / "cut" / "files"

    def cut_on_the_way() -> None:
        while not any(part.stat().st_size for part in files.glob("*.part")):
            time.sleep(0.01)
        board.cut()

    transport = SshTransport(board.card(workdir="cut"))
    threading.Thread(target=cut_on_the_way, daemon=True).start()
    with pytest.raises(Unreachable, match="no connection to"):
        transport.place(path)
    (part,) = files.iterdir()
    assert 0 < part.stat().st_size < path.stat().st_size
    placed = transport.place(path)
    assert (board.home / placed).read_bytes() == path.read_bytes()
    assert [there.suffix for there in files.iterdir()] == [".onnx"]


@on("sshd")
def test_what_was_not_used_for_the_longest_time_goes(board: Server, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(ssh, "_KEPT_BYTES", 7 << 19)  # three files and a half
    board_files = SshTransport(board.card(workdir="few"))
    paths = [tmp_path / f"{index}.onnx" for index in range(3)]
    placed = []
    for index, path in enumerate(paths):
        path.write_bytes(bytes([index]) * (1 << 20))
        placed.append(board.home / board_files.place(path))
        os.utime(placed[-1], (index, index))
    SshTransport(board.card(workdir="few")).place(paths[0])  # used again
    paths[1].write_bytes(bytes([3]) * (1 << 20))
    board_files.place(paths[1])
    assert [path.exists() for path in placed] == [True, False, True]


@on("sshd")
def test_weights_in_a_file_of_their_own_are_refused(board: Server, model: Path):
    model.with_name(f"{model.name}.data").write_bytes(b"weights")
    with pytest.raises(InputError, match="keeps its weights in another file"):
        SshTransport(board.card()).place(model)


# --- processes -----------------------------------------------------------------------------------------------


def test_a_model_is_timed_there_and_nothing_stays(board: Server, model: Path):
    transport = SshTransport(board.card())
    with transport.launch() as process:
        facts = probe.facts(process)
        assert len(time_block(served(process, transport.place(model)), 3, 1, 60.0).samples_s) == 3
        assert board.programs(BOARD)
    assert facts.python_version == sys.version.split()[0]
    assert not board.programs(BOARD)


@on("sshd")
def test_one_that_is_emulated_is_asked_for_no_times(board: Server, model: Path):
    with SshTransport(board.card(emulated=True)).launch() as process:
        assert probe.facts(process).emulated
        with pytest.raises(InputError, match="an emulator's times say nothing of a board's"):
            served(process, str(model))


def test_a_runner_that_is_killed_is_named(board: Server, model: Path):
    transport = SshTransport(board.card())
    with transport.launch() as process:
        served(process, transport.place(model))
        os.kill(max(board.programs(BOARD)), signal.SIGKILL)  # its shell was there before it
        with pytest.raises(DeviceError, match=r"on 'board' \(board\) was killed by SIGKILL; `rankfold devices check"):
            time_block(process, 3, 1, 60.0)
    wait_until_gone(board)


def test_a_connection_that_is_cut_ends_the_process_in_the_middle_of_a_run(board: Server, model: Path):
    transport = SshTransport(board.card())
    with transport.launch() as process:
        served(process, transport.place(model))
        threading.Timer(0.2, board.cut).start()
        with pytest.raises(Unreachable, match=r"no connection to 'board' \(board\): .*; is it on"):
            process.ask(HANGING, 60.0)
    wait_until_gone(board)
    with transport.launch() as process:
        assert probe.weather(process)


@on("sshd")  # dropbear tells the process half of it: that one waits for HUNG_UP_LIMIT_S
def test_a_run_that_hangs_is_given_up_and_ended_there(board: Server, model: Path, monkeypatch):
    monkeypatch.setattr(ssh, "PATIENCE_S", 0.1)
    transport = SshTransport(board.card())
    with transport.launch() as process:
        served(process, transport.place(model))
        with pytest.raises(DeviceError, match=r"no answer from the board within 0\.2 s"):
            process.ask(HANGING, 0.2)
    wait_until_gone(board)


# --- what goes wrong -----------------------------------------------------------------------------------------


def says(board: Server, text: str) -> str:
    """An interpreter there that says this whatever it is asked."""
    path = board.home / f"{hashlib.sha256(text.encode()).hexdigest()[:8]}.sh"
    path.write_text(f"#!/bin/sh\nread request\ncat <<'END'\n{text}\nEND\nread more\n")
    path.chmod(0o755)
    return str(path)


WEATHER = '{{"load_1min": {}, "memory_available_bytes": 1, "throttled": {}}}'


@on("dropbear")
@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (WEATHER.format("NaN", "null"), "malformed: 'load_1min'"),
        (WEATHER.format("0", '"' + "x" * 999 + '"'), "malformed: 'throttled'"),
        (WEATHER.format("0", "null").replace("load", "lead"), "malformed: unknown key 'lead_1min'"),
        ('{"load_1min": 0', "answered no JSON but b'"),
        ("<html>\x1b]0;owned\x07", "answered no JSON but b'<html>\\\\x1b"),
        ('{"error": "\\u001b[2Jgone"}', r"^ \[2Jgone"),
    ],
)
def test_forged_answers_are_refused(board: Server, answer: str, match: str):
    with (
        SshTransport(board.card(python=says(board, answer))).launch() as process,
        pytest.raises((DeviceError, InputError), match=match),
    ):
        probe.weather(process)


@on("sshd")
def test_a_python_that_is_missing_is_named(board: Server):
    with (
        SshTransport(board.card(python="/no/python")).launch() as process,
        pytest.raises(
            DeviceError, match=r"'board' \(board\) lacks a program: .*/no/python.*; install it, or correct the card"
        ),
    ):
        probe.weather(process)


@contextmanager
def instead(path: Path, change: Callable[[str], str]) -> Iterator[None]:
    """A file is another one for a while; connections that were made before are closed."""
    kept = path.read_text()
    path.write_text(change(kept))
    try:
        yield
    finally:
        path.write_text(kept)


def fresh(board: Server) -> SshTransport:
    """One that makes a connection of its own."""
    board.cut()
    return SshTransport(board.card())


@on("sshd")
def test_host_keys_are_checked(board: Server):
    with instead(board.known_hosts, lambda text: ""):
        remedy = f"is not known; connect once to check it: ssh -F {board.config} -- board"
        with pytest.raises(DeviceError, match=remedy):
            fresh(board).python_version()
    other = (board.folder / "key.pub").read_text()
    with instead(board.known_hosts, lambda text: f"{text.split(' ')[0]} {other}"):
        remedy = rf"host key of .* has changed: .*`ssh-keygen -R '\[127\.0\.0\.1\]:{board.port}'`"
        with pytest.raises(DeviceError, match=remedy) as caught:
            fresh(board).python_version()
    assert not isinstance(caught.value, Unreachable)


@on("sshd")
def test_keys_that_are_not_taken_and_hosts_that_are_not_known_are_named(board: Server):
    with (
        instead(board.home / ".ssh" / "authorized_keys", lambda text: ""),
        pytest.raises(DeviceError, match=r"takes none of your keys; ssh-copy-id sends one"),
    ):
        fresh(board).python_version()
    card = board.card(host="no-such-board.invalid")
    with pytest.raises(DeviceError, match=r"\(no-such-board\.invalid\) is no known host; correct its card"):
        SshTransport(card).python_version()


@on("sshd")
def test_a_shell_that_greets_everybody_is_told_of(board: Server):
    greeting = board.home / "greeting"
    greeting.write_text('#!/bin/sh\necho Welcome\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    greeting.chmod(0o755)
    with (
        instead(board.home / ".ssh" / "authorized_keys", lambda text: f'command="{greeting}" {text}'),
        pytest.raises(DeviceError, match=r"says 'Welcome.*start-up files \(~/\.bashrc\)"),
    ):
        fresh(board).python_version()


def test_a_server_that_hangs_after_it_let_us_in_is_given_up(board: Server):
    with (
        instead(board.home / ".ssh" / "authorized_keys", lambda text: 'command="sleep 600" ' + text),
        pytest.raises(Unreachable, match=r"no answer within 0\.5 s; is it on"),
    ):
        fresh(board).run("echo", 0.5)
    board.cut()


@on("sshd")
def test_without_a_client_it_says_what_to_install(board: Server, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DeviceError, match="cannot start ssh: No such file or directory; install the OpenSSH client"):
        SshTransport(board.card()).python_version()


@pytest.mark.parametrize("where", ["a file", "another's"])
def test_sockets_lie_in_a_folder_of_ours_alone(tmp_path: Path, monkeypatch, where: str):
    runtime = Path("/tmp") / tmp_path.name[:20]
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    folder = runtime / "rankfold"
    folder.write_text("") if where == "a file" else folder.mkdir(mode=0o755)
    try:
        with pytest.raises(DeviceError, match="is not a folder of yours alone"):
            ssh._sockets()
    finally:
        folder.unlink() if where == "a file" else folder.rmdir()
        runtime.rmdir()
