"""One command at a time on a board: a lock that vanishes with whoever has it, and a governor that is put back."""

from __future__ import annotations

import ast
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from rankfold.devices import card, keeper, probe, reservation
from rankfold.devices.local import LocalTransport
from rankfold.devices.reach import reserved
from rankfold.devices.reservation import KEEPER, Reserved
from rankfold.devices.ssh import SshTransport
from rankfold.errors import DeviceError, InputError

from ..conftest import ROOT
from ..servers import Server, on
from ..test_imports import imported

SOON_S = 10.0


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    monkeypatch.setattr(reservation, "_LOOK_EVERY_S", 0.1)


def reserve(board: Server, said: list[str] | None = None, governor: str | None = None, **changes: str) -> Reserved:
    tell = said.append if said is not None else pytest.fail
    return Reserved(SshTransport(board.card(**changes)), "board", governor, tell)


def take_turn(board: Server, said: list[str]) -> None:
    with reserve(board, said) as transport, transport.launch() as process:
        probe.weather(process)
        said.append("in")


def keeps(transport: Reserved) -> bool:
    return transport._keeper is not None and transport._keeper.is_alive


def wait_for(what: str, is_so) -> None:
    deadline = time.monotonic() + SOON_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


# --- the lock -------------------------------------------------------------------------------------------------


@on("sshd")
def test_who_comes_second_is_told_who_measures_and_waits(board: Server):
    said: list[str] = []
    with reserve(board):
        second = threading.Thread(target=take_turn, args=(board, said), daemon=True)
        second.start()
        wait_for("nobody says who measures", lambda: len(said) > 1)
        assert "in" not in said
    second.join(SOON_S)
    assert said[-1] == "in"
    assert said[0].startswith(f"waiting: {reservation._me()} measures on 'board' since ")
    assert not board.programs("/files/")


@on("sshd")
def test_it_is_free_when_whoever_has_it_is_killed(board: Server):
    with reserve(board):
        os.kill(max(board.programs("/files/")), signal.SIGKILL)  # its shell was there before it
        with reserve(board) as transport, transport.launch() as process:
            probe.weather(process)
    with reserve(board):
        pass


@on("dropbear")
def test_a_keeper_whose_connection_was_lost_does_not_keep_us_out(board: Server):
    """Nor one that does not know of it, because the cable was pulled: it is ended, and others wait as before."""
    said: list[str] = []
    with ExitStack() as abandoned, reserve(board, said) as transport:
        board.cut()
        wait_for("the keeper has lost nothing", lambda: not keeps(transport))
        transport.launch().__exit__()
        assert (said, keeps(transport)) == ([], True)
        abandoned.push(transport._held.pop_all())
        transport._keeper = None
        transport.launch().__exit__()
        assert said
        other = threading.Thread(target=take_turn, args=(board, others := []), daemon=True)
        other.start()
        wait_for("the board is anybody's", lambda: others)
    other.join(SOON_S)


@on("sshd")
def test_who_waits_for_too_long_gives_up(board: Server, monkeypatch):
    monkeypatch.setattr(reservation, "_WAIT_S", 0.0)
    lock = board.folder / "tmp" / "rankfold.lock"
    with reserve(board):
        lock.write_text('{"who": "\\u001b[2Jeve", "since_s": 1e300, "pid": -1}')
        with pytest.raises(DeviceError, match="malformed: 'held_s'"), reserve(board):
            pass
        lock.write_text("[")
        refusal = r"^somebody measures on 'board' since .* \(process 0 there\), for an hour we have waited; ask them"
        with pytest.raises(DeviceError, match=refusal), reserve(board):
            pass


def test_the_keeper_is_python_3_8_and_needs_nothing():
    ast.parse(KEEPER.read_text(), feature_version=(3, 8))
    assert {name.partition(".")[0] for name in imported(KEEPER, ROOT)} <= sys.stdlib_module_names


# --- the governor ---------------------------------------------------------------------------------------------


def governed_by(board: Server) -> str:
    return board.governor.read_text().strip()


@on("dropbear")
@pytest.mark.parametrize("is_cut", [False, True])
def test_the_governor_is_put_back(board: Server, is_cut: bool):
    with reserve(board, governor="performance") as transport:
        assert governed_by(board) == "performance"
        if is_cut:
            board.cut()
            wait_for("it stays", lambda: governed_by(board) == "ondemand" and not keeps(transport))
        with transport.launch() as process:
            assert probe.weather(process).cores[0].governor == "performance"
    wait_for("it stays", lambda: governed_by(board) == "ondemand")


@on("sshd")
def test_a_governor_that_cannot_be_is_refused_with_what_to_do(board: Server, monkeypatch):
    with pytest.raises(InputError, match=r"^there is no governor 'fast', only ondemand, performance; choose one"):
        reserve(board, governor="fast").__enter__()
    python = board.folder / "python"
    python.write_text(f'#!/bin/sh\nexec setpriv --bounding-set=-dac_override {sys.executable} "$@"\n')
    python.chmod(0o755)
    board.governor.chmod(0o444)
    refusal = (
        r"^the governor cannot be set, /sys/devices/system/cpu/cpu\d+/cpufreq/scaling_governor: Permission denied; "
        r"have it allowed there until the next boot: "
        r"sudo chmod a\+w /sys/devices/system/cpu/cpu\*/cpufreq/scaling_governor$"
    )
    with pytest.raises(InputError, match=refusal):
        reserve(board, governor="performance", python=str(python)).__enter__()
    monkeypatch.setattr(keeper, "GOVERNORS", "/nowhere/*")
    with pytest.raises(keeper.Refused, match=r"^this system lets nobody choose .* leave out --governor"):
        keeper.govern("performance", ExitStack())


def test_this_machine_is_reserved_where_its_governor_is_changed(tmp_path: Path, monkeypatch):
    """What holds it is left the time to put back what was."""
    governor, program = tmp_path / "scaling_governor", tmp_path / "keeper.py"
    governor.write_text("powersave")
    program.write_text(KEEPER.read_text().replace(keeper.GOVERNORS, str(governor)))
    monkeypatch.setattr(reservation, "KEEPER", program)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    host = card.find("host")
    with reserved(host, pytest.fail) as transport:
        assert isinstance(transport, LocalTransport)
    with reserved(host, pytest.fail, "performance"):
        assert governor.read_text() == "performance"
    assert governor.read_text() == "powersave"
