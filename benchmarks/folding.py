"""What folding costs, and what it is for: time and memory by depth, denormal weights, the border of a constant.

python -m rankfold.benchmarks.folding speed
python -m rankfold.benchmarks.folding denormals FOLDER     writes before.onnx and after.onnx, for `rankfold bench`
python -m rankfold.benchmarks.folding border WEIGHTS DATA  a published ResNet-20 and CIFAR-10 as npz
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DEPTHS = {25: (2, 2, 2, 2), 50: (3, 4, 6, 3), 100: (3, 13, 14, 3)}
DEAD_SHARE = 0.3


class Layers:
    """Nodes and seeded weights of a network of convolutions."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, name: str, numbers: np.ndarray) -> str:
        """An initialiser."""
        self.weights.append(numpy_helper.from_array(numbers.astype(np.float32), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node; the name of its output."""
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def conv_bn(self, x: str, name: str, shape: tuple[int, ...], stride: int = 1, dead: float = 0.0) -> str:
        """Convolution and BatchNormalization, a share of whose channels have a scale and shift of zero."""
        out, taps = shape[0], shape[2]
        kernel = self.generator.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        y = self.op("Conv", x, self.constant(f"{name}.weight", kernel), strides=[stride] * 2, pads=[taps // 2] * 4)
        alive = np.ones(out)
        alive[self.generator.choice(out, int(dead * out), replace=False)] = 0
        parts = {"weight": alive, "bias": alive * 0.1, "mean": np.zeros(out), "var": np.ones(out)}
        return self.op("BatchNormalization", y, *(self.constant(f"{name}.bn.{key}", parts[key]) for key in parts))

    def model(self, output: str, size: int) -> onnx.ModelProto:
        """The network for images of size × size."""
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, size, size])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model)


def resnet(depths: tuple[int, ...], size: int) -> onnx.ModelProto:
    """A bottleneck ResNet (He et al., CVPR 2016), its blocks' inner channels partly dead."""
    net = Layers()
    x = net.op("Relu", net.conv_bn("input", "stem", (64, 3, 7, 7), 2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    before = 64
    for stage, blocks in enumerate(depths):
        inner, width = 64 << stage, 256 << stage
        for block in range(blocks):
            name, stride = f"stage{stage}.{block}", 2 if stage and not block else 1
            y = net.op("Relu", net.conv_bn(x, f"{name}.one", (inner, before, 1, 1), 1, DEAD_SHARE))
            y = net.op("Relu", net.conv_bn(y, f"{name}.two", (inner, inner, 3, 3), stride, DEAD_SHARE))
            y = net.conv_bn(y, f"{name}.three", (width, inner, 1, 1))
            short = x if block else net.conv_bn(x, f"{name}.short", (width, before, 1, 1), stride)
            x, before = net.op("Relu", net.op("Add", y, short)), width
    flat = net.op("Flatten", net.op("GlobalAveragePool", x))
    weight = net.constant("fc.weight", net.generator.normal(0, before**-0.5, (1000, before)))
    return net.model(net.op("Gemm", flat, weight, net.constant("fc.bias", np.zeros(1000)), transB=1), size)


def speed() -> None:
    """Fold networks of several depths, each in a process of its own."""
    print("layers  MB   size  passes s (CPU)  whole fold s (CPU)  whole fold s (wall)  peak MB")
    for layers in DEPTHS:
        for size in (64, 224):
            subprocess.run([sys.executable, "-m", _module(), "one", str(layers), str(size)], check=True)


def one(layers: int, size: int) -> None:
    """One line of `speed`."""
    from ..export.fold import fold, tidy
    from ..export.graphs import load
    from ..export.passes.fold_batchnorm import fold_batchnorm
    from ..export.passes.fold_channels import fold_channels

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.onnx"
        subprocess.run([sys.executable, "-m", _module(), "build", str(layers), str(size), str(path)], check=True)
        start, wall = time.process_time(), time.perf_counter()
        fold(path, Path(folder) / "small.onnx")
        whole_s, wall_s = time.process_time() - start, time.perf_counter() - wall
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        start = time.process_time()
        model = load(path)
        tidy(model)
        fold_batchnorm(model)
        decisions = fold_channels(model)
        passes_s = time.process_time() - start
        megabytes = path.stat().st_size / 1e6
    gone = sum(decision.channels - len(decision.kept) for decision in decisions.values())
    assert gone > 0, "nothing was folded"
    print(
        f"{layers:6} {megabytes:4.0f} {size:5} {passes_s:15.1f} {whole_s:19.1f} {wall_s:20.1f} {peak:8.0f}", flush=True
    )


def _module() -> str:
    return __spec__.name if __spec__ else __name__


def denormals(folder: Path) -> None:
    """Six convolutions of which every other weight is subnormal, as weight decay leaves them; and flushed."""
    import onnx_ir as ir

    from ..export.graphs import serialize
    from ..export.passes.flush_denormals import flush_denormals

    net, x = Layers(), "input"
    for layer in range(6):
        before = 64 if layer else 3
        kernel = net.generator.normal(0, (2 / (9 * before)) ** 0.5, (64, before, 3, 3))
        tiny = net.generator.random(kernel.shape) < 0.5
        kernel[tiny] *= 1e-39
        weight = net.constant(f"conv{layer}.weight", kernel)
        x = net.op("Relu", net.op("Conv", x, weight, pads=[1] * 4))
    model = net.model(x, 32)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "before.onnx").write_bytes(model.SerializeToString())
    graph = ir.from_proto(model)
    print(f"{flush_denormals(graph)} weights flushed")
    (folder / "after.onnx").write_bytes(serialize(graph))


def border(weights: Path, data: Path) -> None:
    """γ = 0 but β ≠ 0 inside every block of a ResNet-20: dropped, folded as if nothing were padded, folded by us."""
    import onnx_ir as ir
    import torch

    from ..export.from_torch import to_onnx
    from ..export.graphs import serialize
    from ..export.passes.canonicalize import canonicalize
    from ..export.passes.fold_batchnorm import fold_batchnorm
    from ..export.passes.fold_channels import fold_channels
    from ..train.models.resnet import resnet20
    from ..train.models.weights import load_weights

    images, labels = _images(data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"

        def outputs(model: torch.nn.Module) -> np.ndarray:
            to_onnx(model, torch.zeros(2, 3, 32, 32), path)
            return _run(path.read_bytes(), images)

        model = resnet20().eval()
        load_weights(model, weights)
        print(f"as published: {_accuracy(_run_of(model, path, images), labels):.2%} of {len(labels)} test images")
        constants = _deaden(model)
        truth = outputs(model)
        graph = ir.from_proto(onnx.load(path))
        canonicalize(graph)
        fold_batchnorm(graph)
        decisions = fold_channels(graph)
        kept = sum("zero padding" in decision.reason for decision in decisions.values())
        ours = _run(serialize(graph), images)
        _shift(model, constants)
        ignoring = outputs(model)
        _shift(model, constants, back=True)
        dropped = outputs(model)
    print(
        f"{sum(map(len, constants.values()))} channels with a scale of zero; {kept} groups keep some, with the reason"
    )
    rows = {"original": truth, "rankfold": ours, "constant into the bias, border ignored": ignoring, "dropped": dropped}
    for name, found in rows.items():
        error = np.abs(found - truth).max() / np.abs(truth).max()
        agree = float((found.argmax(1) == truth.argmax(1)).mean())
        print(f"{name:40} max error {error:8.1e}   same class {agree:7.2%}   top-1 {_accuracy(found, labels):7.2%}")


def _images(data: Path) -> tuple[np.ndarray, np.ndarray]:
    arrays = np.load(data)
    images = arrays["x_test"][:2000].transpose(0, 3, 1, 2) / np.float32(255)
    mean, std = (np.array(one, np.float32)[:, None, None] for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((images - mean) / std).astype(np.float32), arrays["y_test"][:2000]


def _deaden(model) -> dict[object, list[int]]:
    """γ = 0 for the quarter of each block's inner channels whose |γ| is least; β stays, and is set to zero later."""
    import torch

    chosen = {}
    for block in (block for stage in (model.layer1, model.layer2, model.layer3) for block in stage):
        gamma = block.bn1.weight
        channels = torch.argsort(gamma.abs())[: len(gamma) // 4].tolist()
        with torch.no_grad():
            gamma[channels] = 0
        chosen[block] = channels
    return chosen


def _shift(model, constants: dict, back: bool = False) -> None:
    """Move relu(β)·Σw of the dead channels into the next BatchNormalization's shift, and set β to zero; or undo it."""
    import torch

    with torch.no_grad():
        for block, channels in constants.items():
            if not back:
                block.saved = torch.relu(block.bn1.bias[channels]).clone()
            share = block.conv2.weight[:, channels].sum((2, 3)) @ block.saved
            scale = block.bn2.weight / torch.sqrt(block.bn2.running_var + block.bn2.eps)
            block.bn2.bias += scale * share * (-1 if back else 1)
            block.bn1.bias[channels] = 0


def _run_of(model, path: Path, images: np.ndarray) -> np.ndarray:
    import torch

    from ..export.from_torch import to_onnx

    to_onnx(model, torch.zeros(2, 3, 32, 32), path)
    return _run(path.read_bytes(), images)


def _run(model: bytes, images: np.ndarray) -> np.ndarray:
    from ..export.parity import run

    return np.concatenate([run(model, {"input": part})[0] for part in np.split(images, 8)])


def _accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float((outputs.argmax(1) == labels).mean())


def main() -> None:
    """One of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["speed", "denormals", "border", "one", "build"])
    parser.add_argument("arguments", nargs="*")
    given = parser.parse_args()
    if given.table == "one":
        one(int(given.arguments[0]), int(given.arguments[1]))
    elif given.table == "build":
        layers, size, path = given.arguments
        Path(path).write_bytes(resnet(DEPTHS[int(layers)], int(size)).SerializeToString())
    elif given.table == "speed":
        speed()
    else:
        {"denormals": denormals, "border": border}[given.table](*map(Path, given.arguments))


if __name__ == "__main__":
    main()
