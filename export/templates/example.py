"""Run the package's models on its test inputs and hold what they put out against the expected outputs.

python3 example.py      exit code 0: they agree; 1: they do not

Needs Python 3.8, numpy and ONNX Runtime 1.16, or newer.
"""

import json
import os
import platform
import sys
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import, which would start a thread

import numpy as np
import onnxruntime as ort

HERE = Path(__file__).resolve().parent
MODELS = ("model.onnx", "model.ort")
WHERE = f"onnxruntime {ort.__version__} on {platform.machine()}"


def read(tensor):
    """An input or output that the manifest describes: little-endian numbers in C order."""
    kind = np.dtype(tensor["type"]).newbyteorder("<")
    return np.fromfile(HERE / tensor["file"], kind).reshape(tensor["shape"])


def run(model, names, inputs):
    """A model's outputs; where it does not run, that is the last line."""
    try:
        session = ort.InferenceSession(str(HERE / model), providers=["CPUExecutionProvider"])
        return session.run(names, inputs)
    except Exception as error:  # noqa: BLE001 (the runtime's errors have no base of their own)
        sys.exit(f"{model}: it does not run by {WHERE}: {' '.join(str(error).split())}")


def relative_error(found, expected):
    """max |found - expected| / max |expected|."""
    if found.shape != expected.shape:
        return float("inf")
    found, expected = found.astype(float), expected.astype(float)
    worst = np.max(np.abs(found - expected), initial=0.0)
    scale = np.max(np.abs(expected), initial=0.0)
    return worst / scale if scale > 0 else worst


def main():
    """Run each model; the last line says whether they agree."""
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    inputs = {tensor["name"]: read(tensor) for tensor in manifest["inputs"]}
    names = [tensor["name"] for tensor in manifest["outputs"]]
    expected = [read(tensor) for tensor in manifest["outputs"]]
    allowed, worst = manifest["tolerance"], 0.0
    for model in MODELS:
        error = np.max(list(map(relative_error, run(model, names, inputs), expected)))
        if not error <= allowed:  # a NaN is no agreement
            sys.exit(f"{model}: relative error {error:.1e} by {WHERE}, allowed {allowed:.1e}")
        worst = max(worst, error)
    print(f"{' and '.join(MODELS)}: relative error {worst:.1e} by {WHERE}, allowed {allowed:.1e}")


if __name__ == "__main__":
    main()
