"""Glyphs repeat themselves and keep font families apart; npz files are checked before they are believed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rankfold.errors import InputError
from rankfold.records import DataSpec
from rankfold.train import data
from rankfold.train.data.dataset import augment, batch_order
from rankfold.train.data.glyphs import FAMILIES

SMALL = DataSpec(train_size=72, test_size=36)


def arrays(**changes):
    rng = np.random.default_rng(0)
    plain = {
        "x_train": rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8),
        "y_train": np.arange(20) % 4,
        "x_test": rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8),
        "y_test": np.arange(8) % 4,
    }
    return {key: value for key, value in {**plain, **changes}.items() if value is not None}


def test_glyphs_are_a_function_of_the_seed():
    one, two, other = (data.load(SMALL.model_copy(update={"data_seed": seed})) for seed in (0, 0, 1))
    assert np.array_equal(one.train.images, two.train.images)
    assert not np.array_equal(one.train.images, other.train.images)
    assert one.train.images.shape == (72, 1, 32, 32)
    assert np.bincount(one.test.labels, minlength=36).tolist() == [1] * 36
    assert one.train.images.std() > 30  # there is ink on them


def test_font_families_never_overlap():
    fonts = [font for part in FAMILIES.values() for font in part]
    assert len(set(fonts)) == len(fonts)


def test_npz_validation_is_the_last_share_of_training(tmp_path):
    path = tmp_path / "d.npz"
    given = arrays()
    np.savez(path, **given)
    loaded = data.load(DataSpec(name="npz", validation_share=0.25), path)
    assert loaded.validation.first == 15
    assert np.array_equal(loaded.validation.images, given["x_train"][15:].transpose(0, 3, 1, 2))
    assert len(loaded.train) == 15
    assert loaded.inputs(loaded.test.images).dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "no array 'y_test'; expected x_train"),
        ({"x_train": np.zeros((20, 8, 8, 3), np.float32)}, "must be non-empty uint8 images"),
        ({"x_train": np.zeros((0, 8, 8, 3), np.uint8), "y_train": np.zeros(0, int)}, "must be non-empty uint8 images"),
        ({"y_train": np.arange(19)}, "y_train must be 20 whole numbers"),
        ({"y_train": np.arange(20) - 1}, "labels start at 0"),
        ({"y_train": np.linspace(0, 1, 20)}, "y_train must be 20 whole numbers"),
        ({"x_test": np.zeros((8, 9, 9, 3), np.uint8)}, "must agree"),
        ({"classes": np.array(["a", "b"])}, "only 2 classes are named"),
        ({"y_train": np.array([{}] * 20, dtype=object)}, "expected an npz file of plain arrays"),
    ],
)
def test_bad_npz_is_one_clear_line(tmp_path, changes, message):
    path = tmp_path / "d.npz"
    np.savez(path, **arrays(**changes))
    with pytest.raises(InputError, match=message) as caught:
        data.load(DataSpec(name="npz"), path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"text"])
def test_files_that_are_no_npz(tmp_path, content):
    path = tmp_path / "d.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="expected an npz file"):
        data.load(DataSpec(name="npz"), path)
    with pytest.raises(InputError, match="cannot read data"):
        data.load(DataSpec(name="npz"), tmp_path / "missing.npz")


def test_augmentation_depends_on_its_seed_alone():
    batch = torch.arange(4 * 3 * 8 * 8, dtype=torch.float32).reshape(4, 3, 8, 8)
    assert torch.equal(augment(batch, "flip-shift", (1, 2)), augment(batch, "flip-shift", (1, 2)))
    assert not torch.equal(augment(batch, "shift", (1, 2)), augment(batch, "shift", (1, 3)))
    assert augment(batch, "none", (1,)) is batch


def test_a_shift_moves_pixels_and_repeats_the_edge():
    batch = torch.zeros(64, 1, 9, 9)
    batch[:, :, 4, 4] = 1.0
    shifted = augment(batch, "shift", (0,))
    places = shifted.flatten(1).argmax(1)
    rows, columns = places // 9 - 4, places % 9 - 4
    assert (shifted.flatten(1).sum(1) == 1).all()
    assert {int(v) for v in rows} == {int(v) for v in columns} == {-2, -1, 0, 1, 2}


def test_padding_is_of_the_mean_colour_and_half_are_flipped():
    batch = torch.zeros(400, 1, 9, 9)
    batch[:, :, 4, 4], batch[:, :, 4, 5] = 1.0, 0.5
    seen = augment(batch, "pad-crop-flip", (0,))
    places = seen.flatten(1).argmax(1)
    rows, columns = places // 9, places % 9
    assert {int(v) for v in rows} == {int(v) for v in columns} == set(range(9))  # 4 ± 4
    right = F.pad(seen, (0, 1))[torch.arange(400), 0, rows, columns + 1] == 0.5
    assert 0.35 < right[columns < 8].float().mean() < 0.65  # the others were flipped
    inside = augment(torch.ones(400, 1, 9, 9), "pad-crop-flip", (0,)).flatten(1).sum(1)
    assert 25 == inside.min() < inside.max() == 81  # 5 × 5 pixels are left of a shift by 4 and 4


def test_each_epoch_has_its_own_order():
    assert sorted(batch_order(10, 0, 0)) == list(range(10))
    assert not np.array_equal(batch_order(10, 0, 0), batch_order(10, 0, 1))
    assert np.array_equal(batch_order(10, 3, 1), batch_order(10, 3, 1))
