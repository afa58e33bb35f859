"""What each module may import, seen in a fresh interpreter."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import rankfold.export
import rankfold.export.passes

MODULES = [
    module.name
    for package in (rankfold.export, rankfold.export.passes)
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("from_torch")
]
BLOCK = "import sys; sys.modules.update(dict.fromkeys({blocked!r})); import {modules}"


def _imports(modules: list[str], blocked: list[str]) -> subprocess.CompletedProcess:
    command = BLOCK.format(blocked=blocked, modules=", ".join(modules))
    return subprocess.run([sys.executable, "-I", "-c", command], capture_output=True, text=True, check=False)


def test_only_from_torch_needs_torch():
    assert len(MODULES) > 15
    result = _imports(MODULES, ["torch"])
    assert result.returncode == 0, result.stderr
    assert _imports(["rankfold.export.from_torch"], ["torch"]).returncode == 1


@pytest.mark.parametrize("module", ["rankfold.export.forms", "rankfold.export.decompose"])
def test_forms_need_numpy_and_einops_only(module):
    blocked = ["torch", "onnx", "onnx_ir", "onnxruntime", "onnxsim", "scipy", "pydantic"]
    result = _imports([module], blocked)
    assert result.returncode == 0, result.stderr
    assert _imports([module], ["einops"]).returncode == 1
