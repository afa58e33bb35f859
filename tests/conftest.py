"""What all tests share: how many cases a law is tried on, and data that only some machines have."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Torch's threads wait for each other by spinning, which costs the other tests their core: one, or they wait asleep.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# A runner started in the background may have been told to ignore Ctrl-C, and the children of the tests with it.
signal.signal(signal.SIGINT, signal.default_int_handler)
SOAK = os.environ.get("RANKFOLD_SOAK") == "1"
SERVERS = ("sshd", "dropbear")  # of ssh
ROOT = Path(__file__).resolve().parent.parent
# Files that take longest, so they begin first: else the last of them would run alone.
LONGEST = (
    "benchmarks/test_compare.py",
    "test_cli.py",
    "test_make.py",
    "train/test_planned.py",
    "benchmarks/test_emulated.py",
    "train/test_trainer.py",
    "train/test_processes.py",
    "benchmarks/test_choosing.py",
    "train/test_compact.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    place = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def counts():
    """counts(short, full): the short number in `check`, the full one in `soak`."""
    return lambda short, full: full if SOAK else short


@pytest.fixture(scope="session")
def shared_data():
    """The folder of data sets and weights that lies beside the project where there is one."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the project: nothing to load published weights from")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A tiny recipe that `make train export bench report` took all the way: copy it, do not change it.

    Made once for all processes that run tests; whoever comes second waits.
    """
    from .making import GOALS, Maker

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        maker = Maker(folder / "finished")
        if not (maker.run / "report.html").exists():
            if SOAK:
                done = maker.make(*GOALS)
                assert done.returncode == 0, done.stderr
            else:
                maker.make_here(*GOALS)
    return maker


@pytest.fixture(scope="module", params=SERVERS)
def board(request, tmp_path_factory):
    """A board behind OpenSSH's server, then one behind dropbear, which has no sftp."""
    from .servers import start

    yield from start(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def call(capfd) -> Callable[[str], tuple[int, str, str]]:
    """Run one command line in this process: exit code, stdout, stderr."""

    from .making import rankfold_here

    def run(line: str) -> tuple[int, str, str]:
        code = rankfold_here(shlex.split(line))
        out, err = capfd.readouterr()
        return code, out, err

    return run
