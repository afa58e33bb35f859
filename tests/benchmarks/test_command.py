"""How a benchmark's command ends."""

from __future__ import annotations

import os
import signal

import pytest

from rankfold.benchmarks.command import in_one_line
from rankfold.errors import InputError


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_one_line_after_all_that_was_under_way_has_ended(capsys, number):
    before, ended = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            ended.append("workers")

    with pytest.raises(SystemExit) as stop, in_one_line():
        work()
    assert stop.value.code == 130
    assert ended == ["workers"]
    assert capsys.readouterr().err == "rankfold: interrupted; the same command goes on where it was\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_error_that_a_user_can_mend_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop, in_one_line():
        raise InputError("expected this, found that")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "rankfold: expected this, found that\n"
