"""ImageNet's layout: which images are kept apart, what is drawn, exact resuming, and what is wrong in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rankfold.errors import InputError
from rankfold.export.calibration import centre, read_image
from rankfold.records import DataSpec, ModelSpec
from rankfold.train import checkpoint, data
from rankfold.train.data.folder import CENTRE, random_part
from rankfold.train.trainer import CHECKPOINT, train

from .images import CLASSES, write_folder
from .recipes import tiny

SPEC = DataSpec(name="folder", size=32, validation_share=0.25, augment="resized-crop")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Read only."""
    return write_folder(tmp_path_factory.mktemp("images") / "imagenet")


def test_the_last_of_each_class_are_kept_apart(root):
    loaded = data.load(SPEC, root)
    assert loaded.classes == CLASSES
    assert loaded.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert loaded.validation.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (loaded.validation.first, len(loaded.test), loaded.image_shape) == (18, 9, (3, 32, 32))
    images = loaded.validation.images[2:3]
    file = root / "train" / CLASSES[1] / "006.JPEG"
    wanted = read_image(file, 3, (32, 32), lambda size: centre(size, CENTRE))
    assert np.array_equal(images[0].transpose(1, 2, 0), wanted)
    assert (images[0].reshape(3, -1).mean(1).argmax(), images.dtype) == (1, np.uint8)


def test_what_is_drawn_depends_on_seed_step_and_place_alone(root):
    loaded, device = data.load(SPEC, root), torch.device("cpu")
    twice = [list(loaded.training(8, "resized-crop", 1, range(5), device)) for _ in range(2)]
    later = list(loaded.training(8, "resized-crop", 1, range(3, 5), device))
    for (images, labels), (same, also) in zip(twice[0], twice[1], strict=True):
        assert torch.equal(images, same)
        assert torch.equal(labels, also)
    assert [len(labels) for _, labels in twice[0]] == [8, 8, 2, 8, 8]
    assert torch.equal(torch.cat([images for images, _ in later]), torch.cat([i for i, _ in twice[0][3:]]))
    other = next(iter(loaded.training(8, "resized-crop", 2, range(1), device)))
    assert not torch.equal(other[0], twice[0][0][0])
    colours = [images.flatten(2).mean(2).argmax(1) for images, _ in twice[0]]
    agree = torch.cat(colours) == torch.cat([labels for _, labels in twice[0]])
    assert agree.float().mean() > 0.8  # all but the grey ones


def test_what_is_looked_at_is_the_centre_in_order(root):
    loaded = data.load(SPEC, root)
    found = list(loaded.batches(loaded.test, 4, torch.device("cpu")))
    assert torch.cat([labels for _, labels in found]).tolist() == [0] * 3 + [1] * 3 + [2] * 3
    wanted = loaded.inputs(loaded.test.images[:])
    assert torch.equal(torch.cat([images for images, _ in found]), torch.from_numpy(wanted))
    assert np.array_equal(data.Inputs(loaded, loaded.test)[4:6], wanted[4:6])


def test_parts_have_the_area_and_the_sides_they_should():
    rng = np.random.default_rng(0)
    parts = [random_part(rng, (500, 375)) for _ in range(500)]
    areas = [(r - l) * (b - t) / (500 * 375) for l, t, r, b in parts]  # noqa: E741
    ratios = [(r - l) / (b - t) for l, t, r, b in parts]  # noqa: E741
    assert 0.075 < min(areas) < 0.15
    assert 0.85 < max(areas) <= 1
    assert 0.7 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.4
    assert all(0 <= l < r <= 500 and 0 <= t < b <= 375 for l, t, r, b in parts)  # noqa: E741
    assert random_part(rng, (1000, 1)) == (500 - 2 / 3, 0, 500 + 2 / 3, 1)


class _Stop(Exception):
    pass


def test_resuming_is_exact(root, tmp_path):
    loaded = data.load(SPEC, root)
    recipe = tiny(
        data=SPEC.model_dump(),
        model=ModelSpec(name="dec3", arguments={"widths": [4, 4, 4]}),
        optimizer={"lr": 0.05, "batch_size": 8, "steps": 5},
        regularizer={"low_rank": 0.05, "every": 2},
    )

    def stop(progress):
        if progress.step == 4:
            raise _Stop

    train(recipe, loaded, tmp_path / "whole")
    with pytest.raises(_Stop, match=r"^$"):
        train(recipe, loaded, tmp_path / "cut", on_progress=stop, checkpoint_every_s=0.0)
    train(recipe, loaded, tmp_path / "cut", resume=True)
    whole, cut = (checkpoint.load(tmp_path / name / CHECKPOINT).tensors for name in ("whole", "cut"))
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


def test_a_broken_image_is_named_in_one_line(tmp_path):
    root = write_folder(tmp_path / "imagenet", train=4, test=1)
    broken = root / "train" / CLASSES[1] / "001.JPEG"
    broken.write_bytes(broken.read_bytes()[:300])
    loaded = data.load(SPEC, root)
    with pytest.raises(InputError, match=r"cannot read image .*001\.JPEG: .*remove or replace it") as caught:
        list(loaded.training(4, "resized-crop", 0, range(3), torch.device("cpu")))
    assert "Traceback" not in str(caught.value)
    broken.unlink()
    for file in (root / "val" / CLASSES[2]).iterdir():
        file.unlink()
    with pytest.raises(InputError, match=rf"{CLASSES[2]}: expected images in a folder a class, found none"):
        data.load(SPEC, root)
    (root / "val" / CLASSES[2]).rmdir()
    with pytest.raises(InputError, match=rf"val: no class folder '{CLASSES[2]}'; train and val must have the same"):
        data.load(SPEC, root)
    with pytest.raises(InputError, match=r"cannot read .*train: .*expected train/CLASS"):
        data.load(SPEC, tmp_path)
    with pytest.raises(InputError, match=r"needs a data folder: give --data FOLDER with train/ and val/"):
        data.load(SPEC)
    with pytest.raises(ValueError, match="'resized-crop' is for name = 'folder'"):
        DataSpec(name="npz", augment="resized-crop")
