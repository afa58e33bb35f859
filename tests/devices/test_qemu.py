"""The transport to emulated boards: without QEMU what it refuses, with it the aarch64 runtime itself."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rankfold.devices import card, probe, userland
from rankfold.devices.check import check
from rankfold.devices.emulated import EmulatedProcess
from rankfold.devices.local import BOARD, death
from rankfold.devices.qemu import PROCESSORS, QemuTransport
from rankfold.devices.setup import set_up
from rankfold.errors import DeviceError, InputError

from ..emulation import emulated

DEVICES = [name for name in card.names() if name.startswith("qemu-")]
A72 = card.find("qemu-cortex-a72")
APT = """#!/bin/sh
set -e
case "$*" in
*update*) test -z "$NO_NETWORK" || { echo "E: first" >&2; echo "E: no route to the mirror" >&2; exit 100; } ;;
*install*) echo "$*" >> "$ASKED"; cp "$DEB" "${APT_CONFIG%/*}/cache/archives/" ;;
esac
"""
CONTROL = "Package: small\nVersion: 1\nArchitecture: arm64\nMaintainer: a <a@b>\nDescription: small\n"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, and a cache of its own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def program(folder: Path, name: str, text: str = "#!/bin/sh\n") -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


# --- without QEMU -------------------------------------------------------------------------------------------


def test_the_shipped_cards_are_of_known_processors():
    assert [f"qemu-{name}" for name in PROCESSORS] == DEVICES
    for name in DEVICES:
        found = card.find(name)
        assert found.is_emulated
        assert (found.name, found.expected_architecture) == (f"qemu-{found.cpu}", "aarch64")
        assert PROCESSORS[str(found.cpu)].name in found.about


def test_what_is_missing_is_named_with_its_remedy(programs: Path):
    with pytest.raises(DeviceError, match=r"no qemu-aarch64 here; install .*package qemu-user"):
        QemuTransport(A72)
    (finding,) = check(A72)
    assert (finding.state, finding.found) == ("failed", "no qemu-aarch64 here")
    with pytest.raises(DeviceError, match="no qemu-aarch64 here"):
        set_up(A72, print)
    assert not userland.path().parent.exists()
    program(programs, "qemu-aarch64")
    with pytest.raises(DeviceError, match=r"no aarch64 userland .*rankfold devices setup qemu-cortex-a72"):
        QemuTransport(A72).launch()
    with pytest.raises(DeviceError, match=r"there is no apt-config here; the userland is made of Debian's packages"):
        set_up(A72, print)
    with pytest.raises(InputError, match="no processor 'z80' is known; choose one of cortex-a53, cortex-a72"):
        QemuTransport(A72.model_copy(update={"cpu": "z80"}))


def test_an_emulator_is_asked_for_no_times():
    with EmulatedProcess([sys.executable, "-I", str(BOARD)], death) as process:
        for command in ("serve", "block", "paced", "contest", "operators"):
            with pytest.raises(InputError, match="an emulator's times say nothing of a board's"):
                process.ask({"command": command}, 1.0)
        assert probe.facts(process).emulated


def test_pythons_settings_here_do_not_reach_the_one_there(programs, tmp_path, monkeypatch):
    """Nor do its hashes differ from process to process, for counts would."""
    program(programs, "qemu-aarch64")
    (tmp_path / "root" / "usr").mkdir(parents=True)
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    command = QemuTransport(A72, tmp_path / "root").python()
    told = [(option, value) for option, value in itertools.pairwise(command) if option in ("-U", "-E")]
    assert ("-U", "PYTHONHOME") in told
    assert told[-1] == ("-E", "PYTHONHASHSEED=0")


def test_every_processor_shows_its_own_cpuinfo(programs: Path, tmp_path: Path):
    program(programs, "qemu-aarch64")
    (tmp_path / "root" / "usr").mkdir(parents=True)
    for name in DEVICES:
        found = card.find(name)
        command = QemuTransport(found, tmp_path / "root").python(["-plugin", "x.so"])
        prefix = Path(command[command.index("-L") + 1])
        assert command[1:3] == ["-cpu", found.cpu]
        assert command[-1] == str(prefix / "usr" / "bin" / "python3")
        assert command[command.index("-plugin") + 1] == "x.so"
        rows = dict(
            line.split("\t: ") for line in (prefix / "proc" / "cpuinfo").read_text().split("\n\n")[0].split("\n")
        )
        assert int(rows["CPU part"], 16) == PROCESSORS[str(found.cpu)].part
        assert ("asimddp" in rows["Features"].split()) == (found.cpu == "cortex-a76")
        (prefix / "proc" / "cpuinfo").write_text("of another version")
        QemuTransport(found, tmp_path / "root").python()
        assert rows["Features"] in (prefix / "proc" / "cpuinfo").read_text()


def test_an_emulated_process_shows_what_the_kernel_runs():
    """Whoever started it: over ssh nobody would say so."""
    asks = f"import sys; sys.path.insert(0, {str(BOARD.parent)!r}); import board; print(board.is_emulated())"
    command = [*emulated("qemu-cortex-a72").python(), "-c", asks]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "True\n"


# --- the userland -------------------------------------------------------------------------------------------


@pytest.fixture
def apt(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt that downloads one small package; the real dpkg-deb and tar unpack it."""
    for name in ("dpkg-deb", "tar", "cp", "sh", "rm", "gzip", "xz"):
        found = shutil.which(name, path="/usr/bin:/bin")
        if found is None:
            pytest.skip(f"no {name} here to unpack a package with")
        (programs / name).symlink_to(found)
    tree = tmp_path / "tree"
    for name, text in {"DEBIAN/control": CONTROL, "lib/old-place": "1", "usr/lib/new-place": "2"}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    subprocess.run(["dpkg-deb", "--build", "-Znone", tree, tmp_path / "small.deb"], check=True, capture_output=True)
    program(programs, "apt-config", "#!/bin/sh\necho 'Acquire::http::Proxy \"http://proxy\";'\n")
    program(programs, "apt-get", APT)
    monkeypatch.setenv("DEB", str(tmp_path / "small.deb"))
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    return tmp_path


def test_a_userland_is_whole_or_not_there(apt: Path, monkeypatch: pytest.MonkeyPatch):
    base = userland.path().parent
    monkeypatch.setenv("NO_NETWORK", "1")
    with (
        pytest.raises(DeviceError, match=r"apt-get failed: E: no route to the mirror; .*try again"),
        userland.making(print),
    ):
        pass
    monkeypatch.setenv("NO_NETWORK", "")

    def fails(root: Path) -> None:
        assert (root / "lib" / "old-place").read_text() == (root / "usr" / "lib" / "old-place").read_text() == "1"
        assert (root / "lib" / "new-place").read_text() == "2"
        raise DeviceError("no wheels")

    with pytest.raises(DeviceError, match="no wheels"), userland.making(print) as root:
        fails(root)
    assert {path.name for path in base.iterdir()} == {"downloads", "lock"}
    settings = (base / "downloads" / "apt.conf").read_text()
    assert 'Acquire::http::Proxy "http://proxy";' in settings
    assert f'Dir::Cache "{base}/downloads/cache"' in settings
    (base / "part").mkdir()  # of a process that was killed
    with userland.making(print) as root:
        (root / "usr" / "wheels").touch()
    assert {path.name for path in base.iterdir()} == {userland.path().name, "lock"}
    assert (userland.path() / "usr" / "wheels").exists()
    assert "--download-only install python3 libstdc++6" in (apt / "asked").read_text()


def test_a_damaged_package_is_named(apt: Path):
    (apt / "small.deb").write_bytes((apt / "small.deb").read_bytes()[:300])
    with pytest.raises(DeviceError, match=r"cannot unpack small\.deb"), userland.making(print):
        pass
    assert not userland.path().exists()
