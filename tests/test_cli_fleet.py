"""Several boards at once: one that fails does not stop the others, Ctrl-C ends all, and 32 take as long as one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from rankfold.devices import card
from rankfold.records import Bench, Context

from .conftest import SOAK
from .making import RANKFOLD
from .runtime.conftest import save_convolution
from .servers import Server, start
from .test_cli_boards import GONE_S, PAIR
from .test_cli_child import alive, interrupted

COUNT = 32 if SOAK else 2
BRIEFLY_S, LONG_S = 0.01, 5.0
MOST_BYTES = 600e6
LOOK_EVERY_S = 8.0  # to look at all processes takes a while itself
# An interpreter there whose runtime sleeps as long as it is told to: the boards share this machine's cores.
PYTHON = """#!/bin/sh
export TMPDIR={folder} SLEEP_S={seconds}
shift
exec {python} -I -c '
import runpy, sys
sys.path.insert(0, "{stubs}")
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
' "$@"
"""
NUMPY = """
__version__ = "sleeping"
class random:
    default_rng = staticmethod(lambda seed: None)
class zeros:
    def __init__(self, shape, kind):
        self.shape = shape
"""
ONNXRUNTIME = """
import os, time
from types import SimpleNamespace
__version__ = "1.99"
GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_ALL=99)
def get_available_providers():
    return ["CPUExecutionProvider"]
class SessionOptions:
    optimized_model_filepath = os.devnull
    def add_session_config_entry(self, key, value):
        pass
class InferenceSession:
    def __init__(self, model, options, providers):
        open(options.optimized_model_filepath, "w").close()
        self.get_providers = get_available_providers
        self.get_inputs = lambda: [SimpleNamespace(name="x", type="tensor(int64)", shape=[1])]
    def run(self, outputs, feed):
        time.sleep(float(os.environ["SLEEP_S"]))
"""


WITH_A_CARD = """
devices = ["pi1", "pi2"]
[[cards]]
name = "gone"
about = "off"
transport = "ssh"
host = "127.0.0.99"
port = 9
tested = "never"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """One that is reached under as many addresses as there are devices, with MaxStartups as it comes."""
    yield from start("sshd", tmp_path_factory.mktemp("sshd"), "0.0.0.0")


@pytest.fixture
def lab(server: Server, tmp_path: Path, monkeypatch) -> Path:
    """lab.toml with `COUNT` devices, pi1 and so on, and two models beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    save_convolution(tmp_path / "dense.onnx", 8)
    save_convolution(tmp_path / "small.onnx", 4)
    stubs = server.folder / "stubs"
    stubs.mkdir(exist_ok=True)
    (stubs / "numpy.py").write_text(NUMPY)
    (stubs / "onnxruntime.py").write_text(ONNXRUNTIME)
    # OpenSSH 9.2's default key exchange takes 0.2 s of one core, which is that of all boards here
    shared = f"Host *\n  HostKeyAlias [127.0.0.1]:{server.port}\n  KexAlgorithms curve25519-sha256\n"
    config = [server.config.read_text().replace("Host board\n  HostName 127.0.0.1\n", shared)]
    for index in range(COUNT):
        name = f"pi{index + 1}"
        folder = server.folder / name
        folder.mkdir(exist_ok=True)
        python = interpreter(server, name, BRIEFLY_S)
        config.append(f"Host {name}\n  HostName 127.0.0.{index + 2}\n")
        told = {"name": name, "about": "sleeps", "transport": "ssh", "host": name, "python": python}
        told |= {"ssh_config": str(tmp_path / "config.ssh"), "workdir": str(folder / "there")}
        card.write({**told, "tested": "never"})
    (tmp_path / "config.ssh").write_text("\n".join(reversed(config)))
    names = ", ".join(f'"pi{index + 1}"' for index in range(COUNT))
    (tmp_path / "lab.toml").write_text(f"devices = [{names}]\n")
    return tmp_path


def interpreter(server: Server, name: str, seconds: float) -> str:
    """A device's, whose runs take so long."""
    python = server.folder / name / "python"
    told = {"folder": python.parent, "python": sys.executable, "stubs": server.folder / "stubs"}
    python.write_text(PYTHON.format(seconds=seconds, **told))
    python.chmod(0o755)
    return str(python)


def test_one_that_fails_is_a_row_and_stops_no_other(lab: Path, call):
    (lab / "lab.toml").write_text(WITH_A_CARD)
    code, said, err = call("bench dense.onnx small.onnx --fleet lab.toml --pairs 2")
    assert code == 3, said
    assert err.splitlines()[-1] == "rankfold: 1 of 3 devices failed: gone"
    lines = said.splitlines()
    assert lines[0].startswith("Speed-up over dense")
    assert [line.split()[0] for line in lines[2:4]] == ["pi1", "pi2"]
    (why,) = (line for line in lines if line.startswith("gone failed: "))
    assert "no connection to 'gone' (127.0.0.99): " in why
    assert lines[-2:] == ["bench.pi1.json", "bench.pi2.json"]
    records = {lab / line: Bench.read(lab / line).context for line in lines[-2:]}
    assert [context.device for context in records.values()] == ["pi1", "pi2"]
    assert max(map(began, records.values())) < min(path.stat().st_mtime for path in records), "one after the other"
    assert not (lab / "bench.gone.json").exists()
    code, said, err = call("report bench.pi1.json bench.pi2.json -o lab.html")
    assert (code, said, err) == (0, "lab.html\n", "")
    assert "Who gains where" in (lab / "lab.html").read_text()


def test_ctrl_c_ends_all_and_leaves_nothing(lab: Path, server: Server):
    """Though each waits for an answer that takes longer than it may take to end."""
    scratch, mark, begun = lab / "scratch", uuid.uuid4().hex, []
    scratch.mkdir()
    for name in ("pi1", "pi2"):
        interpreter(server, name, 0.5)
    environment = {**os.environ, "TMPDIR": str(scratch), "RANKFOLD_TEST": mark}
    command = [*RANKFOLD, "bench", "dense.onnx", "small.onnx", "--device", "pi1,pi2", "--pairs", "100"]

    def both_have_begun() -> bool:
        begun.append(time.monotonic())
        return all(len(server.programs(f"/{name}/there/files/")) >= PAIR for name in ("pi1", "pi2"))

    complaint = interrupted(command, environment, lab, both_have_begun)
    assert complaint.splitlines()[-1].startswith("rankfold: interrupted; nothing half-written is left")
    deadline = begun[-1] + 1.5 * GONE_S  # a pair takes twice as long
    while left := server.programs("/there/files/") or alive(mark):
        assert time.monotonic() < deadline, f"{left} stay"
        time.sleep(0.05)
    print(f"gone after {time.monotonic() - begun[-1]:.1f} s")
    assert time.monotonic() < deadline, "it waited for an answer"
    assert list(scratch.iterdir()) == []
    assert list(lab.glob("bench*")) == []


@pytest.mark.skipif(not SOAK, reason="sleeps for six minutes: in soak")
def test_many_take_as_long_as_the_slowest(lab: Path, server: Server):
    """From the command to its end, within a tenth of what the slowest took from its first process to its record."""
    for index in range(COUNT):
        interpreter(server, f"pi{index + 1}", LONG_S * (0.5 + 0.5 * (index + 1) / COUNT))
    mark, sizes, begin = uuid.uuid4().hex, [], time.monotonic()
    command = [*RANKFOLD, "bench", "dense.onnx", "small.onnx", "--fleet", "lab.toml", "--pairs", "2"]
    with (lab / "said").open("w+") as said:
        child = subprocess.Popen(command, env={**os.environ, "RANKFOLD_TEST": mark}, stderr=said, stdout=said)
        while child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(LOOK_EVERY_S)
            sizes.append(memory(mark))
    took_s = time.monotonic() - begin
    assert child.returncode == 0, (lab / "said").read_text()
    records = {path: Bench.read(path).context for path in lab.glob("bench.*.json")}
    assert sorted(context.device for context in records.values()) == sorted(f"pi{k + 1}" for k in range(COUNT))
    slowest_s = max(path.stat().st_mtime - began(context) for path, context in records.items())
    print(f"{COUNT} devices: {took_s:.1f} s, the slowest {slowest_s:.1f} s; {max(sizes) / 1e6:.0f} MB here")
    assert max(sizes) < MOST_BYTES
    assert took_s < 1.1 * slowest_s
    assert server.programs("/there/files/") == []


def began(context: Context) -> float:
    return datetime.fromisoformat(context.started_at).timestamp()


def memory(mark: str) -> int:
    """Bytes that our processes have for themselves, or share with others, each its part (PSS)."""
    found = 0
    for process in alive(mark):
        try:
            rows = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # gone
            continue
        found += sum(int(row.split()[1]) * 1024 for row in rows if row.startswith("Pss:"))
    return found


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("--device pi1,pi1", "device 'pi1' is named twice; leave one out"),
        ("--device pi1,pi2 --half-width 300%", "a half-width of 3 is not between 0 and 1"),
        ("--device pi1,pi99", "unknown device 'pi99'"),
        ("--device pi1 --fleet lab.toml", "give the devices by --device or by --fleet, not both"),
        ("--device pi1,pi2 --gate 'small <= dense'", "--gate, --summary, --sweep and --resume are for one device"),
        ("--fleet none.toml", "cannot read fleet none.toml: No such file or directory; check its path"),
        ("--fleet empty.toml", "fleet empty.toml: expected a device at least; write for example devices ="),
        ("--fleet wrong.toml", "fleet wrong.toml: unknown key 'device'"),
        ("--fleet config.ssh", "fleet config.ssh: expected TOML, found"),
        ("broken.onnx --device pi1,pi2", "broken.onnx"),
    ],
)
def test_what_is_wrong_is_told_before_anyone_is_reached(lab: Path, call, monkeypatch, options: str, match: str):
    monkeypatch.setattr("rankfold.stages.reserved_device", lambda *_: pytest.fail("reached"))
    (lab / "empty.toml").write_text("")
    (lab / "wrong.toml").write_text('device = ["pi1"]')
    (lab / "broken.onnx").write_text("no model")
    code, _, err = call(f"bench dense.onnx small.onnx {options}")
    assert code == 2
    assert match in err
