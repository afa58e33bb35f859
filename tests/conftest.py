"""What all tests share: how many cases a law is tried on, and data that only some machines have."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# A runner started in the background may have been told to ignore Ctrl-C, and the children of the tests with it.
signal.signal(signal.SIGINT, signal.default_int_handler)
SOAK = os.environ.get("RANKFOLD_SOAK") == "1"
ROOT = Path(__file__).resolve().parent.parent


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
    """A tiny recipe that `make train export bench report` took all the way: copy it, do not change it."""
    from .making import GOALS, Maker

    maker = Maker(tmp_path_factory.mktemp("finished"))
    done = maker.make(*GOALS)
    assert done.returncode == 0, done.stderr
    return maker
