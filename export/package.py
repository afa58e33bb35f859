"""The folder a firmware engineer takes: a model, what it has to put out, and the means to check that on a board.

Everything in it stands on its own: nothing of ours runs on the board but the few lines of templates/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from .. import __version__
from ..errors import InputError
from ..files import sha256_of
from ..records import Package, PackagedFile, PackagedTensor, Parity, Plan
from ..runtime.agreement import precision
from ..runtime.inputs import Given, graph_inputs, make_inputs
from ..runtime.onnxfile import has_external, nodes, read
from .fold import batches, naming, record_names
from .graphs import load
from .opsets import require_known_opset
from .parity import difference, identical, outputs_of, run
from .sessions import save_portable, session

MANIFEST, SUMS = "manifest.json", "SHA256SUMS"
_MODEL, _ORT, _OPERATORS = "model.onnx", "model.ort", "model.required_operators.config"
_TEST_DATA = "test_data_set_0"  # ONNX's name for it
_VERBATIM = {
    "README.md": "README.md",
    "verify.sh": "verify.sh",
    "example.py": "example.py",
    "LICENSES": "LICENSES/README",
}

# How far outputs may be off on another CPU: several times what the runtime's own ways of running the model differ
# by, and no less than what its numbers are precise to.
_FACTOR = 4.0
_MOST = 0.25  # a tolerance above it would find nothing wrong with anything
_NOTHING = "there is nothing to hold a board against"

# numpy's name → C++'s and ONNX Runtime's
_CPP_TYPES = {
    "float32": ("float", "FLOAT"),
    "float64": ("double", "DOUBLE"),
    "float16": ("Ort::Float16_t", "FLOAT16"),
    "bool": ("bool", "BOOL"),
    **{f"{u}int{bits}": (f"{u}int{bits}_t", f"{u}int{bits}".upper()) for u in ("", "u") for bits in (8, 16, 32, 64)},
}


def package_into(folder: Path, source: Path, *, given: Given | None = None, seed: int = 0) -> Package:
    """Fill an empty folder with the package of a model.

    Test inputs are `given` ones, or seeded numbers of a batch of one. Raises InputError for a model that is none, is
    too large for an .ort file, does not run, or puts out something else whenever it is run another way.
    """
    said = given or Given()
    with naming(source):
        content, proto = _opened(source)
        (folder / _MODEL).write_bytes(content)
        save_portable(content, folder / _ORT, "the model")
        (folder / _OPERATORS).write_text(_operators_text(content, folder / "optimized.onnx"))
        inputs = make_inputs(proto, batches(proto, said)[0], np.random.default_rng(seed), said)
        outputs, tolerance = _expected(content, proto, folder / _ORT, inputs)
    named = dict(zip((value.name for value in proto.graph.output), outputs, strict=True))
    (folder / _TEST_DATA).mkdir()
    ins = [_written(folder, "input", *each, graph_inputs(proto)) for each in enumerate(inputs.items())]
    outs = [_written(folder, "output", *each, proto.graph.output) for each in enumerate(named.items())]
    _write_templates(folder, ins, outs, tolerance)
    _copy_records(folder, source)
    package = Package(
        rankfold_version=__version__,
        onnxruntime_version=onnxruntime.__version__,
        source_sha256=sha256_of(source),
        ir_version=proto.ir_version,
        opsets={one.domain or "ai.onnx": one.version for one in proto.opset_import},
        inputs=ins,
        outputs=outs,
        tolerance=tolerance,
        files=[
            PackagedFile(path=path, size_bytes=(folder / path).stat().st_size, sha256=sha256_of(folder / path))
            for path in sorted(each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file())
        ],
    )
    package.write(folder / MANIFEST)
    sums = {MANIFEST: sha256_of(folder / MANIFEST)} | {one.path: one.sha256 for one in package.files}
    (folder / SUMS).write_text("".join(f"{digest}  {path}\n" for path, digest in sums.items()))
    return package


def _opened(source: Path) -> tuple[bytes, onnx.ModelProto]:
    """The model as one file, byte for byte where it is one, and parsed."""
    require_known_opset(load(source))
    content, proto = source.read_bytes(), read(source)
    if has_external(proto):
        raise InputError("the model is larger than 2 GB, which an .ort file cannot hold; make it smaller")
    return (proto.SerializeToString() if has_external(onnx.load_model_from_string(content)) else content), proto


# --- what it has to put out ---------------------------------------------------------------------------------


def _expected(
    content: bytes, proto: onnx.ModelProto, ort_file: Path, inputs: Mapping[str, NDArray]
) -> tuple[list[NDArray], float]:
    """The outputs of the model as it is written, node by node, and how far they may be off elsewhere.

    What this CPU makes of int8 is no standard, its sums may overflow (`needs_reduced_range`): it only has to make the
    same of both files.
    """
    written = session(content, "the model", optimized=False)
    outputs = outputs_of(written, inputs)
    if not identical(outputs_of(written, inputs), outputs):
        raise InputError(f"the model puts out something else at every run; {_NOTHING}")
    optimized = outputs_of(session(content, "the model", wide_int8=True), inputs)
    spread = max(difference(optimized, outputs)[0], difference(run(ort_file, inputs), run(content, inputs))[0])
    if not np.isfinite(spread):
        raise InputError(f"the model puts out NaN, infinity or nothing; {_NOTHING}")
    tolerance = max(_FACTOR * spread, precision(proto))
    if tolerance > _MOST:
        ways = f"its outputs differ by {spread:.2g} between ONNX Runtime's own ways of running it"
        raise InputError(f"{ways}, expected at most {_MOST / _FACTOR:.2g}; {_NOTHING}")
    return outputs, tolerance


# --- files --------------------------------------------------------------------------------------------------


def _operators_text(content: bytes, scratch: Path) -> str:
    """The config of ONNX Runtime's reduced build for model.ort: `domain;opset;operators`, a line a domain.

    Its operators are not those of the model, but what optimising made of them (onnxruntime issue 23018).
    """
    save_portable(content, scratch, "the model")
    optimized = onnx.load(scratch)
    scratch.unlink()
    opsets = {one.domain or "ai.onnx": one.version for one in optimized.opset_import}
    used: dict[str, set[str]] = {}
    for node in nodes(optimized):
        used.setdefault(node.domain or "ai.onnx", set()).add(node.op_type)
    lines = [f"{domain};{opsets[domain]};{','.join(sorted(used[domain]))}\n" for domain in sorted(used)]
    return f"# The operators of {_ORT}, for build.sh --include_ops_by_config\n{''.join(lines)}"


def _written(
    folder: Path, kind: str, index: int, named: tuple[str, NDArray], values: Sequence[onnx.ValueInfoProto]
) -> PackagedTensor:
    """An input or output as .pb and .bin, and what the manifest says of it."""
    name, array = named
    path = f"{_TEST_DATA}/{kind}_{index}"
    (folder / f"{path}.pb").write_bytes(numpy_helper.from_array(array, name).SerializeToString())
    (folder / f"{path}.bin").write_bytes(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return PackagedTensor(
        name=name, type=array.dtype.name, shape=list(array.shape), declared=_declared(values[index]), file=f"{path}.bin"
    )


def _declared(value: onnx.ValueInfoProto) -> list[int | str] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim]


def _write_templates(
    folder: Path, inputs: list[PackagedTensor], outputs: list[PackagedTensor], tolerance: float
) -> None:
    templates = files(__package__ or "rankfold.export").joinpath("templates")
    (folder / "LICENSES").mkdir()
    for name, path in _VERBATIM.items():
        (folder / path).write_bytes(templates.joinpath(name).read_bytes())
    (folder / "verify.sh").chmod(0o755)
    example = Template(templates.joinpath("example.cpp").read_text(encoding="utf-8"))
    rows = {"inputs": "\n".join(_cpp_rows(inputs)), "outputs": "\n".join(_cpp_rows(outputs))}
    (folder / "example.cpp").write_text(example.safe_substitute(rows, tolerance=repr(tolerance)), encoding="utf-8")


def _cpp_rows(tensors: list[PackagedTensor]) -> Iterator[str]:
    for one in tensors:
        cpp, kind = _CPP_TYPES[one.type]
        shape = ", ".join(map(str, one.shape))
        element = f"ONNX_TENSOR_ELEMENT_DATA_TYPE_{kind}, number<{cpp}>"
        yield f'    {{{_cpp_string(one.name)}, "{one.file}", {{{shape}}}, {element}}},'


def _cpp_string(text: str) -> str:
    """A C++ literal of a name from a model, whatever is in it."""
    plain = set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _./:-")
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'


def _copy_records(folder: Path, source: Path) -> None:
    """plan.json and parity.json, where they lie beside the model."""
    for name, kind, copy in zip(record_names(source.name), (Parity, Plan), ("parity.json", "plan.json"), strict=True):
        record = source.with_name(name)
        if record.is_file():
            kind.read(record)
            (folder / copy).write_bytes(record.read_bytes())
