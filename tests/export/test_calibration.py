"""Data as the model takes it, and what is said when it is not; scores from it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from rankfold.errors import CheckFailed, InputError
from rankfold.export.calibration import Preprocess, load
from rankfold.export.evaluate import wilson
from rankfold.export.metric import agreement, by_command, on_data, top1
from rankfold.files import sha256_of

RED, GREEN = (250, 10, 20), (5, 240, 30)
SIZE = (6, 4)  # width, height, as Pillow has it
LEVEL = 1e-6  # float32 arithmetic on numbers of size 1


def _classifier(shape: list, kind: int = TensorProto.FLOAT, axes: tuple[int, int] = (2, 3)) -> onnx.ModelProto:
    """Scores are the channels' means: class 0 is red, 1 green, 2 blue."""
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f", "axes"], ["scores"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [shape[0], 3])],
        [onnx.numpy_helper.from_array(np.array(axes), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


NCHW = _classifier(["batch", 3, 4, 6])
NHWC = _classifier(["batch", 4, 6, 3], axes=(1, 2))


def _image(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, colour).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    for index, (name, colour) in enumerate(
        (("0/a.png", RED), ("1/b.png", GREEN), ("1/c.png", GREEN), ("0/d.png", GREEN))
    ):
        _image(tmp_path / "images" / name, colour)
        (tmp_path / "images" / f"note{index}.txt").write_text("no image")
    return tmp_path / "images"


@pytest.fixture
def model(tmp_path) -> Path:
    onnx.save(NCHW, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def _first(samples) -> np.ndarray:
    return next(iter(samples.read(0, 1).values()))[0]


# --- images -------------------------------------------------------------------------------------------------


def test_class_folders_are_labels(folder):
    samples = load(folder, NCHW)
    assert samples.labels is not None
    assert (samples.count, samples.labels.tolist()) == (4, [0, 0, 1, 1])
    assert [feed["image"].shape for feed, _ in samples.batches(3)] == [(3, 3, 4, 6), (1, 3, 4, 6)]


@pytest.mark.parametrize(
    ("names", "labels"), [(("cat", "ant"), [1, 0]), (("10", "9"), [10, 9]), (("10", "9a"), [0, 1])]
)
def test_classes_are_numbered_by_name_or_are_numbers(tmp_path, names, labels):
    for name, colour in zip(names, (RED, GREEN), strict=True):
        _image(tmp_path / name / "x.png", colour)
    samples = load(tmp_path, NCHW)
    assert samples.labels is not None
    by_colour = sorted(range(2), key=lambda index: -samples.read(index, index + 1)["image"][0, 0].mean())
    assert samples.labels[by_colour].tolist() == labels


@pytest.mark.parametrize("header", ["", "file,label\n"])
def test_a_list_of_labels(tmp_path, header):
    _image(tmp_path / "x" / "r.png", RED)
    _image(tmp_path / "g.jpg", GREEN)
    (tmp_path / "labels.csv").write_text(f"{header}g.jpg,7\nx/r.png,0\n")
    samples = load(tmp_path, NCHW)
    assert samples.labels is not None
    assert samples.labels.tolist() == [7, 0]
    assert _first(samples)[1].mean() > 0.9


def test_images_without_labels(tmp_path):
    _image(tmp_path / "r.png", RED)
    assert load(tmp_path, NCHW).labels is None


@pytest.mark.parametrize(
    ("how", "proto", "expected"),
    [
        (Preprocess(), NCHW, np.array(RED) / 255),
        (Preprocess(colors="bgr"), NCHW, np.array(RED[::-1]) / 255),
        (Preprocess(mean=(0.5,), std=(0.25,)), NCHW, (np.array(RED) / 255 - 0.5) / 0.25),
        (
            Preprocess(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0)),
            NCHW,
            (np.array(RED) / 255 - [0.1, 0.2, 0.3]) / [1, 2, 4],
        ),
        (Preprocess(layout="nhwc"), NHWC, np.array(RED) / 255),
        (Preprocess(), _classifier(["b", 3, 4, 6], TensorProto.UINT8), np.array(RED)),
    ],
    ids=["plain", "bgr", "one-mean", "three-means", "nhwc", "uint8"],
)
def test_pixels_become_what_the_model_takes(folder, how, proto, expected):
    found = _first(load(folder, proto, how))
    channels = found.reshape(-1, 3).T if how.layout == "nhwc" else found.reshape(3, -1)
    assert channels == pytest.approx(np.repeat(np.asarray(expected)[:, None], 24, axis=1), abs=LEVEL)


def test_the_centre_is_kept_and_resized(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[2:6, 6:10] = 255  # the central square of half the shorter side
    Image.fromarray(pixels).save(tmp_path / "x.png")
    whole, centre = (_first(load(tmp_path, NCHW, Preprocess(crop=crop))) for crop in (None, 0.5))
    assert centre.mean() > 0.9  # bilinear: the border mixes in what lies beside the square
    assert whole.mean() == pytest.approx(4 * 4 / (8 * 16), abs=0.05)


def test_gray_images_and_open_sizes(folder):
    gray = _classifier(["batch", 1, "height", "width"])
    with pytest.raises(InputError, match="input 'image' has no fixed height and width; give --size, such as 224x224"):
        load(folder, gray)
    assert _first(load(folder, gray, Preprocess(size=(5, 7)))).shape == (1, 5, 7)


@pytest.mark.parametrize(
    ("how", "shape", "match"),
    [
        (Preprocess(size=(5, 5)), ["b", 3, 4, 6], "--size 5x5: the model takes images of 4×6"),
        (Preprocess(std=(0.0,)), ["b", 3, 4, 6], "--std: expected numbers other than 0"),
        (Preprocess(layout="nhwc"), ["b", 3, 4, 6], "expected 1 or 3 channels, found 6; see --layout"),
        (Preprocess(), ["b", 10], "expected four axes for images, found 2; use an npz file"),
    ],
)
def test_options_that_do_not_fit(folder, how, shape, match):
    with pytest.raises(InputError, match=match):
        load(folder, _classifier(shape), how)


def test_numbers_that_do_not_fit_the_channels(folder):
    with pytest.raises(InputError, match="--mean: expected 1 or 3 numbers, found 2"):
        load(folder, NCHW, Preprocess(mean=(0.1, 0.2))).read(0, 1)


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"cannot read image .*x.png: .*; remove or replace it"):
        load(tmp_path, NCHW).read(0, 1)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"cannot read image .*x.png"):
        load(tmp_path, NCHW).read(0, 1)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("r.png,0\nnone.png,1\n", "no image 'none.png' in that folder"),
        ("r.png,0\n../r.png,1\n", "no image '../r.png' in that folder"),
        ("r.png;0\n", "expected lines of file,label, found 'r.png;0'"),
    ],
)
def test_lists_that_do_not_fit(tmp_path, text, match):
    _image(tmp_path / "data" / "r.png", RED)
    _image(tmp_path / "r.png", RED)
    (tmp_path / "data" / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=match):
        load(tmp_path / "data", NCHW)


# --- arrays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["images", "x", "x_test", "image"])
@pytest.mark.parametrize("last", [True, False])
def test_arrays_of_images(tmp_path, key, last):
    pixels = np.zeros((5, 4, 6, 3), np.uint8) + np.array(RED, np.uint8)
    np.savez(tmp_path / "d.npz", **{key: pixels if last else pixels.transpose(0, 3, 1, 2), "labels": np.arange(5)})
    samples = load(tmp_path / "d.npz", NCHW)
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 2, 3, 4]
    assert _first(samples)[:, 0, 0] == pytest.approx(np.array(RED) / 255, abs=LEVEL)


def test_arrays_of_numbers_come_as_they_are(tmp_path):
    numbers = np.random.default_rng(0).normal(size=(2, 3, 4, 6))
    np.savez(tmp_path / "d.npz", image=numbers)
    samples = load(tmp_path / "d.npz", NCHW, Preprocess(mean=(9.0,)))
    assert samples.labels is None
    assert _first(samples) == pytest.approx(numbers[0], abs=LEVEL)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"z": np.zeros(3)}, r"expected the arrays image \(or images, x, x_test\), found z"),
        ({"image": np.zeros((2, 3, 4, 5))}, r"expected data of shape \['n', 3, 4, 6\], found \[1, 3, 4, 5\]"),
        ({"image": np.zeros((2, 3, 4, 6)), "labels": np.zeros(3, int)}, "expected a label each, found 2 inputs and 3"),
        ({"image": np.zeros((2, 3, 4, 6)), "y": np.array([0.5, 1])}, "expected labels as whole numbers from 0"),
        ({"image": np.zeros((2, 3, 4, 6)), "y": np.array([0, -1])}, "expected labels as whole numbers from 0"),
        ({"image": np.zeros((0, 3, 4, 6))}, "expected data, found none"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, match):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(InputError, match=match):
        load(tmp_path / "d.npz", NCHW).read(0, 1)


# --- scores -------------------------------------------------------------------------------------------------


def test_labels_give_accuracy_with_its_interval(folder, model):
    score = on_data(model, folder, None, Preprocess())
    assert (score.metric, score.n, score.value, score.data) == ("top-1", 4, 0.75, "images")
    assert (score.low, score.high) == wilson(3, 4)
    assert score.model_sha256 == sha256_of(model)
    swapped = on_data(model, folder, None, Preprocess(colors="bgr"))
    assert swapped.value == 0.5  # red becomes blue, green stays


def test_a_fixed_batch_is_filled_up(folder, tmp_path):
    onnx.save(_classifier([3, 3, 4, 6]), tmp_path / "fixed.onnx")
    assert on_data(tmp_path / "fixed.onnx", folder, None, Preprocess()).value == 0.75


def test_without_labels_a_reference_is_agreed_with(tmp_path, model):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", image=rng.normal(size=(40, 3, 4, 6)).astype(np.float32))
    with pytest.raises(InputError, match=r"it has no labels; give --reference ORIGINAL\.onnx"):
        on_data(model, tmp_path / "d.npz", None, Preprocess())
    score = on_data(model, tmp_path / "d.npz", model, Preprocess())
    assert (score.value, score.n) == (1.0, 40)
    assert score.metric == "top-1 agreement with the original"
    assert score.reference_sha256 == sha256_of(model)


def test_other_outputs_agree_by_their_error(tmp_path):
    def scaled(factor: float) -> Path:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node("Mul", ["image", "factor"], ["y"])],
            "scale",
            [value("image", TensorProto.FLOAT, ["batch", 3, 4, 6])],
            [value("y", TensorProto.FLOAT, ["batch", 3, 4, 6])],
            [onnx.numpy_helper.from_array(np.array(factor, np.float32), "factor")],
        )
        path = tmp_path / f"{factor}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
        return path

    np.savez(tmp_path / "d.npz", image=np.random.default_rng(0).normal(size=(5, 3, 4, 6)))
    samples = load(tmp_path / "d.npz", NCHW)
    score = agreement(scaled(0.9), scaled(1.0), samples)
    assert score.value == pytest.approx(0.9, abs=LEVEL)
    assert (score.n, score.low) == (None, None)
    with pytest.raises(InputError, match=r"expected class scores n×classes, found \[5, 3, 4, 6\]; use --metric"):
        top1(scaled(1.0), _labelled(tmp_path))
    onnx.save(NCHW, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="its outputs have other shapes than those of"):
        agreement(tmp_path / "m.onnx", scaled(1.0), samples)


def _labelled(folder: Path):
    np.savez(folder / "l.npz", image=np.zeros((5, 3, 4, 6)), labels=np.arange(5))
    return load(folder / "l.npz", NCHW)


def test_nan_in_the_outputs_is_no_score(tmp_path, model):
    np.savez(tmp_path / "d.npz", image=np.full((2, 3, 4, 6), np.nan), labels=np.zeros(2, int))
    with pytest.raises(InputError, match="expected numbers, found NaN in its outputs"):
        on_data(model, tmp_path / "d.npz", None, Preprocess())


# --- a command of the user's --------------------------------------------------------------------------------


def _script(folder: Path, body: str) -> str:
    (folder / "eval.py").write_text(f"import sys\n{body}\n")
    return f"{sys.executable} '{folder}/eval.py' {{model}} 'two words'"


def test_a_command_is_given_the_model_and_its_last_line_is_the_number(tmp_path, model):
    odd = model.rename(tmp_path / "odd $(touch x); name.onnx")
    body = """
print("epoch 1")
assert sys.argv[1].endswith("; name.onnx") and sys.argv[2] == "two words"
print(-0.25)
print()"""
    score = by_command(_script(tmp_path, body), odd, limit_s=60)
    assert (score.value, score.n, score.low) == (-0.25, None, None)
    assert score.metric.startswith("command: ")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("body", "kind", "match"),
    [
        ("print('good')", InputError, "expected a number on the last line of .*, found 'good'"),
        ("print('nan')", InputError, "expected a number on the last line of .*, found 'nan'"),
        ("pass", InputError, "found 'it printed nothing'"),
        ("print(1); sys.exit('no data\\nin there')", CheckFailed, "ended with status 1: in there"),
        ("import time; time.sleep(60)", InputError, "gave no number within 2 s; raise --limit-s"),
    ],
)
def test_commands_that_give_no_number(tmp_path, model, body, kind, match):
    with pytest.raises(kind, match=match):
        by_command(_script(tmp_path, body), model, limit_s=2 if "sleep" in body else 300)


@pytest.mark.parametrize(
    ("command", "match"),
    [
        ("python eval.py", r"expected a command with \{model\} in it"),
        ("", r"expected a command with \{model\} in it"),
        ("python 'eval.py {model}", "No closing quotation; check its quotes"),
        ("./none {model}", "cannot start ./none: No such file or directory"),
    ],
)
def test_commands_that_are_none(model, command, match):
    with pytest.raises(InputError, match=match):
        by_command(command, model, limit_s=2)
