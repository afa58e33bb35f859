"""The folder for firmware: what is in it, what its check says on a board, and one line for what cannot be packaged."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from rankfold.errors import InputError
from rankfold.export.graphs import with_weights
from rankfold.export.package import MANIFEST, SUMS, package_into
from rankfold.export.parity import difference, identical, outputs_of, run
from rankfold.export.sessions import session
from rankfold.files import making_folder, sha256_of
from rankfold.records import Package, Parity, ParityCheck, Plan
from rankfold.runtime.inputs import Given

from ..emulation import emulated
from .conftest import chain
from .written import LOOP, TOKENS, parsed

INT8 = """
<ir_version: 8, opset_import: ["" : 17]>
int8 (float[batch, 4] x) => (float[batch, 3] y)
<float scale = {0.05}, uint8 zero = {128}, float small = {0.01}, int8 none = {0}, int8[4, 3] weight = {
  40, -30, 20, 10, 63, -60, -50, 5, 31, 12, -22, 33}, float out = {0.02}>
{
  xq = QuantizeLinear(x, scale, zero)
  xd = DequantizeLinear(xq, scale, zero)
  wd = DequantizeLinear(weight, small, none)
  p = MatMul(xd, wd)
  pq = QuantizeLinear(p, out, zero)
  y = DequantizeLinear(pq, out, zero)
}
"""
MODELS = {"chain": lambda: chain().model, "int8": lambda: parsed(INT8), "loop": lambda: parsed(LOOP)}
ORT_OWN = """
import sys
sys.modules["torch"] = None  # the tool's package would import it for something else
from onnxruntime.tools.ort_format_model import OrtFormatModelProcessor
for path in sys.argv[1:]:
    found = {}
    OrtFormatModelProcessor(path, found, None).process()
    print({domain: sorted({name for names in opsets.values() for name in names}) for domain, opsets in found.items()})
"""
BOARD_S = 180.0  # an emulated one on a busy machine


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """A package of each model; read only."""
    folder = tmp_path_factory.mktemp("packages")
    for name, build in MODELS.items():
        onnx.save(build(), folder / f"{name}.onnx")
        (folder / name).mkdir()
        package_into(folder / name, folder / f"{name}.onnx")
    return folder


@pytest.fixture
def board(packages, tmp_path) -> Path:
    """One of them, copied to a path with spaces."""
    return shutil.copytree(packages / "chain", tmp_path / "on a board" / "the model")


def verify(folder: Path, shell: tuple[str, ...] = ("sh",), **environment: str) -> tuple[int, str]:
    """Exit code and output of the package's check, from another folder."""
    done = subprocess.run(
        [*shell, str(folder / "verify.sh")],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=BOARD_S,
        check=False,
        env=os.environ | {"PYTHON": sys.executable} | environment,
    )
    return done.returncode, done.stdout + done.stderr


def sum_again(folder: Path, *names: str) -> None:
    """Write the checksums of changed files as if they had always been so."""
    sums = folder / SUMS
    for name in names:
        text = re.sub(rf"[0-9a-f]{{64}}(?=  {re.escape(name)}\n)", sha256_of(folder / name), sums.read_text())
        assert text != sums.read_text()
        sums.write_text(text)


# --- what is in it ------------------------------------------------------------------------------------------


def test_the_manifest_names_every_file(packages):
    for name in MODELS:
        manifest = Package.read(packages / name / MANIFEST)
        found = {
            path.relative_to(packages / name).as_posix() for path in (packages / name).rglob("*") if path.is_file()
        }
        assert found == {file.path for file in manifest.files} | {MANIFEST, SUMS}
        for file in manifest.files:
            assert file.sha256 == sha256_of(packages / name / file.path)
            assert file.size_bytes == (packages / name / file.path).stat().st_size
        assert (
            manifest.source_sha256 == sha256_of(packages / f"{name}.onnx") == sha256_of(packages / name / "model.onnx")
        )
        assert manifest.onnxruntime_version == onnxruntime.__version__
        assert (packages / name / SUMS).read_text().count("\n") == len(manifest.files) + 1


def test_test_data_is_onnxs_and_the_same_as_numbers(packages):
    for name in MODELS:
        manifest, arrays = Package.read(packages / name / MANIFEST), []
        for tensor in (*manifest.inputs, *manifest.outputs):
            proto = onnx.load_tensor(packages / name / tensor.file.replace(".bin", ".pb"))
            array = numpy_helper.to_array(proto)
            assert (proto.name, array.dtype.name, list(array.shape)) == (tensor.name, tensor.type, tensor.shape)
            assert array.tobytes() == (packages / name / tensor.file).read_bytes()
            arrays.append(array)
        (first, *_), outputs = manifest.inputs, arrays[len(manifest.inputs) :]
        assert first.shape[0] == 1
        assert first.declared == ["batch", *first.shape[1:]]
        assert all(np.ptp(output) > 0 for output in outputs)
        feeds = {tensor.name: array for tensor, array in zip(manifest.inputs, arrays, strict=False)}
        written = session(packages / name / "model.onnx", name, optimized=False)
        assert identical(outputs_of(written, feeds), outputs)
        for model in ("model.onnx", "model.ort"):
            relative, _ = difference(run(packages / name / model, feeds), outputs)
            assert relative <= manifest.tolerance / 4


def test_required_operators_are_those_of_the_optimised_graph(packages):
    ort_files = [str(packages / name / "model.ort") for name in MODELS]
    done = subprocess.run([sys.executable, "-c", ORT_OWN, *ort_files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, line in zip(MODELS, done.stdout.splitlines(), strict=True):
        text = (packages / name / "model.required_operators.config").read_text()
        rows = [row.split(";") for row in text.splitlines() if not row.startswith("#")]
        assert {domain: names.split(",") for domain, _, names in rows} == ast.literal_eval(line)
        assert all(opset.isdecimal() for _, opset, _ in rows)
    chain_text, int8_text, loop_text = [
        (packages / name / "model.required_operators.config").read_text() for name in MODELS
    ]
    assert "com.microsoft;1;FusedConv" in chain_text  # made by optimising, and of no layout of one CPU's
    assert "nchwc" not in chain_text
    assert "QLinearMatMul" in int8_text
    assert {"Loop", "Tanh"} <= set(re.split("[;,\n]", loop_text))  # inside the loop too


def test_the_same_model_gives_the_same_package(packages, tmp_path):
    again, first = package_into(tmp_path, packages / "chain.onnx"), Package.read(packages / "chain" / MANIFEST)
    changed = set(again.files) ^ set(first.files)
    assert {file.path for file in changed} <= {"model.ort"}  # ONNX Runtime writes its tables in any order
    assert again.model_copy(update={"files": first.files}) == first


def test_inputs_are_the_users_and_data_outside_comes_in(tmp_path, monkeypatch):
    onnx.save(parsed(TOKENS), tmp_path / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=0)
    arrays = {"tokens": np.array([[3, 1, 4]]), "mask": np.array([[1, 1, 0]])}
    (tmp_path / "out").mkdir()
    made = package_into(tmp_path / "out", tmp_path / "net.onnx", given=Given(arrays=arrays))
    assert [(one.type, one.shape, one.declared) for one in made.inputs] == [("int64", [1, 3], ["batch", "length"])] * 2
    stored = numpy_helper.to_array(onnx.load_tensor(tmp_path / "out" / "test_data_set_0" / "input_0.pb"))
    assert stored.tolist() == [[3, 1, 4]]
    alone = shutil.copytree(tmp_path / "out", tmp_path / "elsewhere")
    assert difference(run(alone / "model.onnx", arrays), run(parsed(TOKENS).SerializeToString(), arrays))[0] == 0
    monkeypatch.setattr("rankfold.runtime.onnxfile.MAX_EMBEDDED_BYTES", 100)
    with pytest.raises(InputError, match=r"net.onnx: the model is larger than 2 GB, which an .ort file cannot hold"):
        package_into(tmp_path / "none", tmp_path / "net.onnx")


def test_a_batch_and_open_axes_are_as_they_are_asked_for(tmp_path):
    onnx.save(parsed(TOKENS), tmp_path / "net.onnx")
    (tmp_path / "out").mkdir()
    made = package_into(tmp_path / "out", tmp_path / "net.onnx", given=Given({"tokens": (2, 5)}), seed=3)
    assert [one.shape for one in (*made.inputs, *made.outputs)] == [[2, 5], [2, 5], [2, 5, 6]]


# --- the check on a board -----------------------------------------------------------------------------------


SHELLS = [("sh",), ("busybox", "sh")]


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_a_whole_package_says_yes_from_any_folder(board, shell):
    if shutil.which(shell[0]) is None:
        pytest.skip(f"no {shell[0]} here to run verify.sh with")
    code, said = verify(board, shell)
    assert code == 0, said
    assert said.count("\n") == 1
    assert re.fullmatch(r"yes: all files are whole; model.onnx and model.ort: relative error \S+ by onnxr.*\n", said)


def test_an_int8_package_says_yes(packages):
    code, said = verify(packages / "int8")
    assert code == 0, said
    assert "allowed 1.0e-02" in said


def change_a_weight(folder: Path, by: float) -> None:
    model = onnx.load(folder / "model.onnx")
    (weight,) = (numpy_helper.to_array(one) for one in model.graph.initializer if one.name == "fc.weight")
    changed = weight.copy()
    changed[0, np.abs(weight[0]).argmax()] *= 1 + by
    onnx.save(with_weights(model, {"fc.weight": changed}), folder / "model.onnx")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a weight": (
        lambda folder: change_a_weight(folder, 0.1),
        "no: model.onnx is not what was packaged, its SHA-256 differs",
    ),
    "no model": (lambda folder: (folder / "model.ort").unlink(), "no: model.ort is missing"),
    "no data": (
        lambda folder: shutil.rmtree(folder / "test_data_set_0"),
        "no: test_data_set_0/input_0.bin is missing",
    ),
    "no sums": (lambda folder: (folder / SUMS).unlink(), "no: SHA256SUMS is missing"),
}


@pytest.mark.parametrize(("harm", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_package_says_no_and_names_the_file(board, harm, says):
    harm(board)
    code, said = verify(board)
    assert code == 1, said
    assert said.startswith(says)
    assert said.count("\n") == 1


def test_a_changed_weight_with_its_checksum_is_seen_in_the_outputs(board):
    change_a_weight(board, 0.1)
    sum_again(board, "model.onnx")
    code, said = verify(board)
    assert code == 1, said
    assert re.fullmatch(r"no: model.onnx: relative error \S+ by onnxruntime \S+ on \S+, allowed 1.0e-05\n", said)


def test_on_aarch64_it_says_yes_and_no_where_a_weight_is_another(board, tmp_path, counts):
    """The numbers themselves, behind a checksum that agrees, in soak."""
    python = tmp_path / "python of a Cortex-A72"
    python.write_text(f'#!/bin/sh\nexec {shlex.join(emulated("qemu-cortex-a72").python())} "$@"\n')
    python.chmod(0o755)
    code, said = verify(board, PYTHON=str(python))
    assert code == 0, said
    assert re.fullmatch(r"yes: all files .*: relative error \S+ by onnxruntime \S+ on aarch64, allowed 1.0e-05\n", said)
    change_a_weight(board, 0.1)
    if summed := counts(False, True):
        sum_again(board, "model.onnx")
    code, said = verify(board, PYTHON=str(python))
    assert code == 1, said
    assert ("on aarch64, allowed 1.0e-05" if summed else "no: model.onnx is not what was packaged") in said


def test_what_the_runtime_refuses_is_one_line(board):
    (board / "model.ort").write_bytes(b"no model")
    sum_again(board, "model.ort")
    code, said = verify(board)
    assert code == 1
    assert said.startswith("no: model.ort: it does not run by onnxruntime ")
    assert said.count("\n") == 1


def test_what_a_board_lacks_is_named(board, tmp_path):
    bare = tmp_path / "python without packages"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    code, said = verify(board, PYTHON=str(bare))
    assert (code, said) == (2, "cannot be checked here: Python package numpy is missing; the files are whole\n")
    code, said = verify(board, PYTHON="nowhere")
    assert (code, said) == (2, "cannot be checked here: nowhere is missing; the files are whole\n")
    code, said = verify(board, ("/bin/sh",), PATH="/nowhere")
    assert (code, said) == (2, "cannot be checked here: sha256sum is missing (coreutils or busybox)\n")


def test_the_python_example_is_of_the_oldest_python(board):
    ast.parse((board / "example.py").read_text(), feature_version=(3, 8))


@pytest.fixture(scope="module")
def cpp(tmp_path_factory) -> Callable[[Path], Path]:
    """Compile the C++ example of a package, with ORT_HOME or the system's onnxruntime; where headers come without a
    library, with the wheel's.
    """
    home, wheel = Path(os.environ.get("ORT_HOME", "/usr")), Path(onnxruntime.__file__).parent
    include = next((one.parent for one in sorted(home.glob("include/**/onnxruntime_cxx_api.h"))), None)
    libraries = (*home.glob("lib*/libonnxruntime.so*"), *home.glob("lib/*/libonnxruntime.so*"))
    library = next(iter(libraries or wheel.glob("capi/libonnxruntime.so.*")), None)
    if shutil.which("g++") is None or include is None or library is None:
        pytest.skip("no g++, or no onnxruntime_cxx_api.h: set ORT_HOME to a release, or install libonnxruntime-dev")
    folder = tmp_path_factory.mktemp("library")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(library)

    def compiled(package: Path) -> Path:
        program = folder / "example"
        command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "example.cpp", "-o", str(program)]
        command += [f"-I{include}", f"-L{folder}", "-lonnxruntime", f"-Wl,-rpath,{folder}"]
        built = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr
        return program

    return compiled


def test_the_cpp_example_compiles_and_agrees_or_not(packages, tmp_path, cpp):
    board = shutil.copytree(packages / "chain", tmp_path / "board")
    program = cpp(board)
    done = subprocess.run([program], cwd=board, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"relative error \S+, allowed 1.0e-05\n", done.stdout)
    expected = np.fromfile(board / "test_data_set_0" / "output_0.bin", np.float32)
    for other in (expected * np.float32(1.01), expected * np.float32("nan")):
        other.tofile(board / "test_data_set_0" / "output_0.bin")
        done = subprocess.run([program, "model.onnx"], cwd=board, capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stdout
    (board / "test_data_set_0" / "input_0.bin").unlink()
    done = subprocess.run([program], cwd=board, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "cannot read test_data_set_0/input_0.bin\n")


def test_names_from_a_model_are_no_code(tmp_path):
    model = chain().model
    evil = '"}; int main() { } // \n\\é'
    model.graph.input[0].name = evil
    for node in model.graph.node:
        node.input[:] = [evil if name == "input" else name for name in node.input]
    onnx.save(model, tmp_path / "net.onnx")
    (tmp_path / "out").mkdir()
    package_into(tmp_path / "out", tmp_path / "net.onnx")
    code = (tmp_path / "out" / "example.cpp").read_text()
    assert r'{"\042\175\073 int main\050\051 \173 \175 // \012\134\303\251", "test_data' in code


# --- the command --------------------------------------------------------------------------------------------


def test_the_command_makes_the_folder_or_nothing(packages, tmp_path, call):
    source = packages / "loop.onnx"
    folder = tmp_path / "new" / "board"
    code, out, err = call(f"package {source} -o {folder}")
    assert (code, err) == (0, "")
    assert "on the board: sh board/verify.sh" in out
    assert os.access(folder / "verify.sh", os.X_OK)
    assert oct(folder.stat().st_mode & 0o777) == oct(0o777 & ~_umask())
    kept = (folder / SUMS).read_bytes()
    code, _, err = call(f"package {source} -o {folder}")
    assert code == 2
    assert "expected no such file or folder, found one; remove it or choose another name" in err
    assert (folder / SUMS).read_bytes() == kept
    assert [path.name for path in folder.parent.iterdir()] == ["board"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


HEAD = '<ir_version: 8, opset_import: ["" : 17]> net (float[1, 4] x) => (float[1, 4] y)'
RANDOM = f"{HEAD} {{ n = RandomNormalLike(x) y = Add(x, n) }}"
NAN = f"{HEAD} {{ m = Abs(x) o = Neg(m) y = Sqrt(o) }}"


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        (TOKENS, "", "input 'tokens': axis 1 has no fixed size; give one, such as --shape tokens:"),
        (TOKENS, "--shape tokens:2", "--shape tokens: expected 2 sizes, found 1"),
        (TOKENS, "--inputs none.npz", "cannot read none.npz"),
        (RANDOM, "", "the model puts out something else at every run; there is nothing to hold a board against"),
        (NAN, "", "the model puts out NaN, infinity or nothing; there is nothing to hold a board against"),
        ("", "", "net.onnx: expected an ONNX model, found an empty file"),
    ],
    ids=["open", "shape", "inputs", "random", "nan", "empty"],
)
def test_what_cannot_be_packaged_is_one_line_and_no_folder(tmp_path, call, text, options, says):
    source = tmp_path / "net.onnx"
    source.write_bytes(parsed(text).SerializeToString() if text else b"")
    code, out, err = call(f"package {source} -o {tmp_path / 'out'} {options}")
    assert (code, out) == (2, "")
    assert err.startswith("rankfold: ")
    assert err.count("\n") == 1
    assert re.search(says, err)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_outputs_that_hang_on_rounding_are_refused(tmp_path):
    """Folding BatchNorm changes the last digits, of which the sine of a large number is made."""
    model = chain().model
    (output,) = model.graph.output
    model.graph.initializer.append(numpy_helper.from_array(np.array(1e9, np.float32), "large"))
    model.graph.node.append(onnx.helper.make_node("Mul", [output.name, "large"], ["far"]))
    model.graph.node.append(onnx.helper.make_node("Sin", ["far"], ["wild"]))
    output.name = "wild"
    onnx.save(model, tmp_path / "net.onnx")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"its outputs differ by .* between ONNX Runtime's own ways .* at most 0.062;"):
        package_into(tmp_path / "out", tmp_path / "net.onnx")


def test_records_beside_the_model_come_along(packages, tmp_path):
    source = shutil.copy(packages / "chain.onnx", tmp_path / "small.onnx")
    Plan(tile=1).write(tmp_path / "small.plan.json")
    check = ParityCheck(what="fold", batch=1, relative=0, absolute=0, bound=1e-6, passed=True)
    Parity(checks=[check]).write(tmp_path / "small.parity.json")
    (tmp_path / "out").mkdir()
    package_into(tmp_path / "out", source)
    for name in ("plan", "parity"):
        assert (tmp_path / "out" / f"{name}.json").read_bytes() == (tmp_path / f"small.{name}.json").read_bytes()
    (tmp_path / "small.plan.json").write_text("{}")
    (tmp_path / "more").mkdir()
    with pytest.raises(InputError, match=r"small.plan.json: 'tile': Field required"):
        package_into(tmp_path / "more", source)


def test_a_folder_is_whole_or_not_there(tmp_path):
    target = tmp_path / "target"

    def interrupted() -> None:
        with making_folder(target) as folder:
            (folder / "half").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    target.mkdir()
    with making_folder(target) as folder:
        (folder / "whole").write_text("a")
        assert not list(target.iterdir())
    assert (target / "whole").read_text() == "a"
    with pytest.raises(InputError, match="target: expected no such file"), making_folder(target):
        pass
