"""Files that an older ONNX Runtime reads: the newest opset and IR version of each release.

A runtime refuses a file whose IR version is above its own ("Unsupported model IR version: 10, max supported IR
version: 9", onnxruntime issue 20559) and promises nothing for a newer opset. Lowering the IR version changes a
number in the file; lowering the opset rewrites operators, and is done only where it is asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx import version_converter

from ..errors import InputError
from .graphs import ir_version

_LEAST_OPSET = 7  # ONNX Runtime reads nothing older (its docs/Versioning.md)
# Release → newest opset and IR version (onnxruntime.ai/docs/reference/compatibility.html). Later ones are not
# held to anything: they read what was written when this was. 1.16 is the oldest that boards may have.
_RELEASES = {
    16: (19, 9),
    17: (20, 9),
    18: (21, 10),
    19: (21, 10),
    20: (21, 10),
    21: (22, 10),
    22: (22, 10),
    23: (23, 11),
}
_NO_LIMIT = (1 << 30, 1 << 30)


@dataclass(frozen=True)
class Target:
    """The oldest runtime that must read a file."""

    name: str
    opset: int
    ir_version: int


def target(release: str) -> Target:
    """`1.17`, `1.17.3` → what that release of ONNX Runtime reads."""
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})(\.\S{1,40})?", release)
    if found is None:
        raise InputError(f"--target-ort {release[:40]!r}: expected a release of ONNX Runtime, such as 1.17")
    major, minor = int(found[1]), int(found[2])
    if major < 1 or (major == 1 and minor < min(_RELEASES)):
        raise InputError(f"--target-ort {release}: expected 1.{min(_RELEASES)} or newer, as on every board")
    return Target(release, *(_RELEASES.get(minor, _NO_LIMIT) if major == 1 else _NO_LIMIT))


def retargeted(model: ir.Model, wanted: Target) -> ir.Model:
    """The model in a form that `wanted` reads; itself where it is one already.

    Raises InputError where an operator cannot be written in the older opset. What the converter makes is to be
    checked like any rewrite.
    """
    opset = model.opset_imports.get("", 0)
    if opset > wanted.opset:
        model = _lowered(model, wanted)
    model.ir_version = min(ir_version(model), wanted.ir_version)
    return model


def require_known_opset(model: ir.Model) -> None:
    """Refuse what no runtime we know runs."""
    opset = model.opset_imports.get("", _LEAST_OPSET)
    if opset < _LEAST_OPSET:
        raise InputError(f"expected opset {_LEAST_OPSET} or newer, found {opset}; export it again")


def _lowered(model: ir.Model, wanted: Target) -> ir.Model:
    opset = model.opset_imports[""]
    try:
        return ir.from_proto(version_converter.convert_version(ir.to_proto(model), wanted.opset))
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        why = " ".join(str(error).split())[:120]
        raise InputError(
            f"opset {opset} cannot be written as {wanted.opset}, the newest of ONNX Runtime {wanted.name}: {why}; "
            f"export it with opset {wanted.opset}"
        ) from error
