"""External data from a stranger: inside the model's folder, as long as it says, or refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from rankfold.errors import InputError
from rankfold.runtime import onnxfile
from rankfold.runtime.onnxfile import has_external, read

NUMBERS = np.arange(12, dtype=np.float32).reshape(4, 3)
SIZE = NUMBERS.nbytes


def _description(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.graph.initializer[0].external_data}


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """Write a model of one weight whose description is changed, in a folder of its own, beside a secret."""

    def written(**changes: str | None) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        (tmp_path / "secret.bin").write_bytes(b"S" * SIZE)
        (folder / "weights.bin").write_bytes(NUMBERS.tobytes())
        (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
        (folder / "short.bin").write_bytes(NUMBERS.tobytes()[:-1])
        (folder / "below").mkdir()
        (folder / "below" / "weights.bin").write_bytes(NUMBERS.tobytes())
        weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=NUMBERS.shape)
        weight.data_location = onnx.TensorProto.EXTERNAL
        described = {"location": "weights.bin", "offset": "0", "length": str(SIZE)} | changes
        for key, value in described.items():
            if value is not None:
                weight.external_data.add(key=key, value=value)
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
            "net",
            [value("x", onnx.TensorProto.FLOAT, ["batch", 3])],
            [value("y", onnx.TensorProto.FLOAT, ["batch", 4])],
            [weight],
        )
        (folder / "net.onnx").write_bytes(helper.make_model(graph, ir_version=8).SerializeToString())
        return folder / "net.onnx"

    return written


@pytest.mark.parametrize("changes", [{}, {"length": None}, {"offset": None}, {"location": "below/weights.bin"}])
def test_data_in_the_models_folder_is_read(write, changes):
    model = read(write(**changes))
    assert not has_external(model)
    assert np.array_equal(onnx.numpy_helper.to_array(model.graph.initializer[0]), NUMBERS)


def test_the_folder_counts_wherever_the_command_runs(write, monkeypatch):
    path = write()
    monkeypatch.chdir(path.parent)
    assert not has_external(read(Path("net.onnx")))
    monkeypatch.chdir("/")
    assert not has_external(read(path))


def test_data_too_large_for_one_message_is_checked_and_left_outside(write, monkeypatch):
    path = write()
    monkeypatch.setattr(onnxfile, "MAX_EMBEDDED_BYTES", SIZE)
    model = read(path)
    assert has_external(model)
    assert _description(model)["location"] == "weights.bin"


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/passwd", "link.bin", "", ".", "..", "\0", "a" * 5000, "below/../../secret.bin"]
)
def test_data_outside_the_folder_is_refused(write, location):
    with pytest.raises(InputError, match=r"external data of 'w': (expected a file in the model's folder|no file)"):
        read(write(location=location))


def test_an_absolute_path_into_the_folder_is_refused_too(write, tmp_path):
    with pytest.raises(InputError, match="expected a file in the model's folder, found '/"):
        read(write(location=str(tmp_path / "model" / "weights.bin")))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"location": "none.bin"}, "no file 'none.bin' beside the model; copy it there"),
        ({"location": "below"}, "no file 'below' beside the model"),
        ({"location": "short.bin"}, "expected 48 bytes, found 47 bytes and a length of 48"),
        ({"location": "short.bin", "length": None}, "expected 48 bytes, found 47 bytes; copy"),
        ({"offset": "1"}, "expected 48 bytes, found 47 bytes"),
        ({"offset": str(1 << 50)}, "expected 48 bytes, found 0 bytes"),
        ({"length": "47"}, "expected 48 bytes, found 48 bytes and a length of 47"),
        ({"length": "-1"}, "expected a whole number as length, found '-1'"),
        ({"offset": "9" * 30}, "expected a whole number as offset"),
        ({"offset": "７"}, "expected a whole number as offset"),
    ],
)
def test_data_that_is_not_as_described_is_refused(write, changes, match):
    with pytest.raises(InputError, match=match):
        read(write(**changes))


def test_data_in_subgraphs_is_checked_too(write):
    path = write(location="../secret.bin")
    model = onnx.load(path, load_external_data=False)
    inner = helper.make_graph([], "inner", [], [], [model.graph.initializer[0]])
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner))
    del model.graph.initializer[:]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"expected a file in the model's folder, found '\.\./secret\.bin'; ref"):
        read(path)


def test_a_pipe_is_no_file(write, tmp_path):
    path = write(location="pipe")
    os.mkfifo(tmp_path / "model" / "pipe")
    with pytest.raises(InputError, match="no file 'pipe' beside the model"):
        read(path)


def test_a_graph_without_nodes_is_no_model(tmp_path):
    (tmp_path / "empty.onnx").write_bytes(onnx.ModelProto(ir_version=8).SerializeToString())
    with pytest.raises(InputError, match="expected an ONNX model, found no graph with nodes"):
        read(tmp_path / "empty.onnx")
