"""Imports go one way: cli → train → export → runtime → devices → records. And heavy packages stay out."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from .conftest import ROOT

# A folder may import itself and what stands below it.
ORDER = ("leaves", "devices", "runtime", "export", "train", "top")
LEAVES = {"records", "errors", "files"}
TOP = {
    "cli",
    "__main__",
    "bench_commands",
    "compress_commands",
    "compress_stages",
    "device_commands",
    "fleet",
    "guarded",
    "onnx_commands",
    "options",
    "quantize_stages",
    "onnx_stages",
    "stages",
    "sweep",
    "sweep_commands",
    "tables",
    "terminal",
    "benchmarks",
}
FORBIDDEN = {
    "devices": {"torch", "onnx", "onnx_ir", "onnxsim"},
    "runtime": {"torch", "onnx_ir", "onnxsim"},
    "export": {"torch"},
    "train": {"onnxruntime"},
}
ALLOWED_TORCH = {"export/from_torch.py"}
BLOCK_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is blocked")
sys.meta_path.insert(0, Block())
"""


def rank(part: str) -> int:
    if part in LEAVES:
        return 0
    return ORDER.index("top" if part in TOP else part)


def imported(path: Path, root: Path) -> set[str]:
    """Absolute names of all that a file imports, wherever in it, `rankfold.`-prefixed for our own."""
    package = ["rankfold", *path.relative_to(root).parent.parts]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            target = [*base, *(node.module or "").split(".")] if node.module else base
            names |= {".".join([*target, alias.name]) for alias in node.names}
    return names


def violations(root: Path) -> list[str]:
    """One line for each import that goes the wrong way."""
    found = []
    for folder in ORDER[1:-1]:
        for path in sorted((root / folder).rglob("*.py")):
            where = path.relative_to(root).as_posix()
            for name in sorted(imported(path, root)):
                first, _, rest = name.partition(".")
                ours = rest.partition(".")[0] if first == "rankfold" else ""
                if ours and ours not in ("__version__",) and rank(ours) > rank(folder):
                    found.append(f"{where} imports {name}: {folder} may not import {ours}")
                if first in FORBIDDEN[folder] and where not in ALLOWED_TORCH:
                    found.append(f"{where} imports {name}: {folder} does without {first}")
    return found


def test_imports_go_one_way():
    assert violations(ROOT) == []


def test_board_file_needs_only_numpy_and_onnxruntime():
    path = ROOT / "devices" / "board.py"
    ours = {name.partition(".")[0] for name in imported(path, ROOT)} - set(sys.stdlib_module_names)
    assert ours <= {"numpy", "onnxruntime"}


@pytest.mark.parametrize(
    ("where", "line", "message"),
    [
        ("runtime/bad.py", "from ..export import forms", "runtime may not import export"),
        ("devices/bad.py", "from ..runtime.stats import x", "devices may not import runtime"),
        ("export/passes/bad.py", "def f():\n    from ...train import trainer", "export may not import train"),
        ("export/bad.py", "import torch.nn", "export does without torch"),
        ("train/models/bad.py", "import onnxruntime", "train does without onnxruntime"),
        ("runtime/bad.py", "import rankfold.cli", "runtime may not import cli"),
    ],
)
def test_a_wrong_import_is_found(tmp_path, where, line, message):
    for folder in ORDER[1:-1]:
        (tmp_path / folder).mkdir()
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(line + "\n")
    (found,) = violations(tmp_path)
    assert message in found


def test_imports_with_torch_not_importable():
    packages = ("runtime", "runtime.measure", "runtime.report", "devices.local", "export.shrink")
    code = "\n".join([BLOCK_TORCH, *(f"import rankfold.{package}" for package in packages)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr


def test_train_imports_with_its_own_packages_alone():
    """torch, numpy, safetensors, einops, scipy and pydantic: nothing that only export or the command line needs."""
    code = """
        import sys
        blocked = {"onnx", "onnx_ir", "onnxruntime", "onnxsim", "typer", "rich", "matplotlib", "PIL", "jinja2"}
        class Block:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in blocked:
                    raise ImportError(name + " is blocked")
        sys.meta_path.insert(0, Block())
        from rankfold import CompressionAware
        import rankfold.train.checkpoint, rankfold.train.models
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr


def test_help_imports_nothing_heavy():
    code = """
        import sys, runpy
        sys.argv = ["rankfold", "--help"]
        try:
            runpy.run_module("rankfold", run_name="__main__")
        except SystemExit as stop:
            assert stop.code == 0
        heavy = {"numpy", "torch", "onnx", "onnxruntime", "pydantic", "matplotlib", "scipy"} & set(sys.modules)
        assert not heavy, heavy
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_misspelt_recipe_is_said_without_torch():
    code = f"{BLOCK_TORCH}\nfrom rankfold.cli import main\nsys.argv = ['rankfold', 'train', 'no-such']\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert (done.returncode, done.stderr[:31]) == (2, "rankfold: no recipe 'no-such'; ")
