"""The counter: refused with the reason where it cannot be made; with QEMU, counts that are known beforehand."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rankfold.devices.counting import Counted, count, plugin, qemu_version
from rankfold.devices.emulated import EmulatedProcess
from rankfold.errors import DeviceError
from rankfold.export.candidates import DENSE, Place, Way, model_of
from rankfold.export.forms import Pixels

from ..conftest import SOAK
from ..emulation import counter
from .test_qemu import program

QEMU = """#!/bin/sh
test "$1" = --version && echo "qemu-aarch64 version {version} (Debian)" || echo "{options}"
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (folder / "sh").symlink_to("/bin/sh")
    return folder


def qemu(folder: Path, version: str, options: str = "-plugin ...") -> None:
    program(folder, "qemu-aarch64", QEMU.format(version=version, options=options))


def request(*models: Path, **changes: Any) -> dict[str, Any]:
    told = {"threads": 1, "provider": "cpu", "session_config": {}, "cores": [], "seed": 0}
    return {"models": list(map(str, models)), **told, **changes}


# --- without QEMU -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "options", "match"),
    [
        ("10.0.3", "-plugin ...", r"QEMU 10\.0\.3 has another plugin interface than the counter, made for QEMU 6 to 8"),
        ("5.2.0", "-plugin ...", r"QEMU 5\.2\.0 has another plugin interface"),
        ("7.2.22", "-cpu ...", r"takes no plugins; install Debian's package qemu-user, not the static one"),
        ("one", "-plugin ...", r"does not say which version it is"),
    ],
)
def test_another_qemu_is_refused(programs: Path, version: str, options: str, match: str):
    qemu(programs, version, options)
    with pytest.raises(DeviceError, match=match):
        qemu_version()


def test_it_is_compiled_once_or_the_reason_is_told(programs: Path):
    qemu(programs, "7.2.22")
    assert qemu_version() == "7.2.22"
    with pytest.raises(DeviceError, match=r"no C compiler here .*gcc"):
        plugin()
    program(programs, "cc", "#!/bin/sh\necho 'count.c:20:10: fatal error: stdint.h' >&2\nexit 1\n")
    with pytest.raises(DeviceError, match=r"cannot compile the counter: count.c:20:10: fatal error: stdint\.h"):
        plugin()
    folder = programs.parent / "cache" / "rankfold" / "aarch64"
    assert list(folder.iterdir()) == []
    compiler = shutil.which("cc", path="/usr/bin:/usr/local/bin")
    if compiler is None:
        pytest.skip("no C compiler here to make the counter with")
    strict = "-Wall -Wextra -Wno-unused-parameter -Werror"
    program(programs, "cc", f'#!/bin/sh\nPATH=/usr/bin:/bin exec {compiler} {strict} "$@"\n')
    assert plugin().read_bytes().startswith(b"\x7fELF")
    (programs / "cc").unlink()
    assert list(folder.iterdir()) == [plugin()]


def test_a_run_that_was_not_marked_is_an_error(programs: Path, tmp_path: Path):
    """Where the plugin does not take note of the marks, as another emulator would not."""
    qemu(programs, "7.2.22")
    program(programs, "cc", '#!/bin/sh\nwhile test "$1" != -o; do shift; done; echo > "$2"\n')

    class Unmarked:
        def launch(self, options: list[str]) -> EmulatedProcess:
            Path(options[1].split("out=")[1]).touch()
            code = "print('{\"models\": 1}', flush=True); input()"
            return EmulatedProcess([sys.executable, "-c", code], lambda status, said: DeviceError(said))

    with pytest.raises(DeviceError, match="0 runs were counted, expected 3 of each model"):
        count(Unmarked(), request(tmp_path / "any"))  # pyright: ignore[reportArgumentType]


# --- with QEMU ----------------------------------------------------------------------------------------------


def convolution(path: Path, *, int8: bool) -> Path:
    """3×3, of 16 channels to 16 on 8×8 pixels, which fit every kernel's tile: 147,456 MACs."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-60, 60, (16, 16, 3, 3)).astype(np.int8)
    constants = {
        "wq": weight,
        "w": weight.astype(np.float32),
        "s": np.float32(0.05),
        "z": np.uint8(128),
        "n": np.int8(0),
    }
    fine, coarse = ("s", "z"), ("s", "n")
    quantized = [
        helper.make_node("QuantizeLinear", ["x", *fine], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", *fine], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", *coarse], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["c"], pads=[1] * 4),
        helper.make_node("QuantizeLinear", ["c", *fine], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", *fine], ["y"]),
    ]
    nodes = quantized if int8 else [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16, 8, 8]) for name in "xy"]
    used = {name for node in nodes for name in node.input}
    weights = [numpy_helper.from_array(np.asarray(one), name) for name, one in constants.items() if name in used]
    graph = helper.make_graph(nodes, "convolution", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def forms(folder: Path, pixels: int) -> list[Path]:
    """One layer dense, at rank 32, and at spatial rank 32."""
    place = Place("Conv", (64, 64, 3, 3), Pixels(*[pixels] * 4), (1, 1), (1, 1), (1,) * 4, "Relu", True)
    paths = [folder / f"{name}.onnx" for name in ("dense", "channel", "spatial")]
    for path, way in zip(paths, (DENSE, Way("channel", (32,)), Way("spatial", (32,))), strict=True):
        path.write_bytes(model_of(place, way))
    return paths


@pytest.mark.parametrize(("device", "lanes"), [("qemu-cortex-a76", 16), *([("qemu-cortex-a72", 8)] if SOAK else [])])
def test_multiply_adds_are_the_macs_forms_are_ranked_and_counts_repeat(tmp_path: Path, device, lanes, counts):
    """To 0.01 % in every process, and the multiply-adds to the last one."""
    transport = counter(device)
    models = [convolution(tmp_path / f"{int8}.onnx", int8=int8) for int8 in (False, True)]
    models += forms(tmp_path, counts(4, 14))
    found: list[list[Counted]] = [count(transport, request(*models)) for _ in range(counts(1, 5))]
    single, quantized, *ranked = found[0]
    assert single.multiply_adds == quantized.multiply_adds == 16 * 16 * 9 * 64
    assert single.multiplying == single.multiply_adds / 4  # fmla: 4 numbers of 32 bits
    assert quantized.multiplying == quantized.multiply_adds / lanes  # sdot: 16 of 8 bits; smull, smlal: 8
    assert quantized.instructions < single.instructions
    for key in ("instructions", "multiply_adds"):
        dense, channel, spatial = (getattr(one, key) for one in ranked)
        assert dense > channel > spatial
    for runs in zip(*found, strict=True):
        assert len({(one.multiplying, one.multiply_adds) for one in runs}) == 1
        fewest, most = (pick(one.instructions for one in runs) for pick in (min, max))
        assert most / fewest - 1 <= 1e-4
