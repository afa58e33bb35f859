"""Fold damaged files, one by one, each in a guarded child of a fresh interpreter: what came of it, as JSON lines.

python fuzzing.py FOLDER COUNT SEED: FOLDER/sources/*.onnx are damaged; every case gets a folder of its own.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from pathlib import Path

import onnx
from mutations import LIMIT_S, MEMORY_BYTES, mutated  # pyright: ignore[reportMissingImports] (beside this file)

import rankfold.export.fold  # noqa: F401 (before the first fork, so that no child imports it again)
from rankfold.errors import RankfoldError
from rankfold.export.guard import guarded
from rankfold.export.parity import difference, float32_original, run
from rankfold.onnx_stages import fold_guarded
from rankfold.runtime.inputs import Given, parse_shapes


def look_again(folder: Path, given: Given) -> str:
    """How far the folded file is from the damaged one, on an input that fold did not try."""
    truth = float32_original(folder / "model.onnx", 1, seed=99, given=given)
    relative, _ = difference(run(folder / "out.onnx", truth.inputs), truth.outputs)
    onnx.checker.check_model(str(folder / "out.onnx"))
    return json.dumps(relative)


def one_case(folder: Path, content: bytes, source: Path, shapes: list[str]) -> dict:
    """What became of one damaged file: the files left, the text, the time."""
    folder.mkdir()
    (folder / "model.onnx").write_bytes(content)
    for data in source.parent.glob("*.bin"):
        shutil.copy(data, folder)
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    before = {path.name for path in folder.iterdir()}
    limits = {"limit_s": LIMIT_S, "memory_bytes": MEMORY_BYTES}
    began = time.monotonic()
    try:
        fold_guarded(folder / "model.onnx", folder / "out.onnx", tile=1, shapes=shapes, **limits)
        found = {"relative": json.loads(guarded(lambda: look_again(folder, Given(parse_shapes(shapes))), **limits))}
    except RankfoldError as error:
        found = {"kind": type(error).__name__, "text": str(error)}
    found |= {"seconds": time.monotonic() - began, "new": sorted({path.name for path in folder.iterdir()} - before)}
    shutil.rmtree(folder)
    return found


def main(work: Path, count: int, seed: int) -> None:
    """A line for every case, then one with the largest memory that a child ever held."""
    sources = sorted((work / "sources").glob("*.onnx"))
    for index, (name, source, content) in enumerate(mutated(sources, count, seed)):
        shapes = ["tokens:1x7"] if source.stem == "tokens" else []
        print(json.dumps({"case": name, **one_case(work / f"case{index}", content, source, shapes)}), flush=True)
    peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps({"peak_bytes": peak_bytes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
