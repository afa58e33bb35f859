from __future__ import annotations

import numpy as np
import pytest

from rankfold.export.decompose import Factors
from rankfold.export.forms import FORMS, Pixels, dense_macs, kernel_shape, resolve

SHAPES = [(6, 4, 3, 3), (4, 7, 5, 3), (5, 5, 3, 1), (5, 4, 1, 5), (8, 3, 1, 1)]
PIXELS = Pixels(in_h=8, in_w=10, out_h=4, out_w=5)
# forms resolved for a shape, so that linear only meets 1×1 kernels
CASES = [(resolve(name, shape), shape) for name in FORMS for shape in SHAPES]


@pytest.mark.parametrize(("form", "shape"), CASES, ids=str)
def test_tensorize_undoes_matricize_for_arrays_and_tensors(form, shape):
    kernel = np.random.default_rng(0).normal(size=shape)
    assert np.array_equal(form.tensorize(form.matricize(kernel), shape), kernel)
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(kernel)
    assert torch.equal(form.tensorize(form.matricize(tensor), shape), tensor)
    assert np.array_equal(form.matricize(tensor).numpy(), form.matricize(kernel))


@pytest.mark.parametrize(("form", "shape"), CASES, ids=str)
@pytest.mark.parametrize("rank", [1, 3])
def test_kernels_have_the_promised_shapes_and_compose_to_the_matrix_product(form, shape, rank):
    generator = np.random.default_rng(1)
    rows, columns = form.matricize(np.zeros(shape)).shape
    left, right = generator.normal(size=(rows, rank)), generator.normal(size=(rank, columns))
    first, second = form.kernels(left, right, shape)
    assert (first.shape, second.shape) == form.factor_shapes(shape, rank)
    assert first.size + second.size == form.parameters(shape, rank)
    np.testing.assert_allclose(Factors((first, second)).to_dense(), form.tensorize(left @ right, shape), atol=1e-12)
    assert form.full_rank(shape) == min(rows, columns)


@pytest.mark.parametrize(("form", "shape"), CASES, ids=str)
def test_break_even_is_the_last_rank_that_saves(form, shape):
    dense, even = dense_macs(shape, PIXELS), form.break_even(shape, PIXELS)
    assert form.macs(shape, even, PIXELS) < dense <= form.macs(shape, even + 1, PIXELS)


@pytest.mark.parametrize(
    ("name", "kernel", "per_channel_and_rank"),
    [("channel", 3, 10), ("input-channel", 3, 10), ("spatial", 3, 6), ("linear", 1, 2)],
)
def test_macs_per_output_pixel_are_those_of_the_table(name, kernel, per_channel_and_rank):
    channels, rank, pixels = 16, 5, Pixels(7, 7, 7, 7)
    macs = FORMS[name].macs((channels, channels, kernel, kernel), rank, pixels)
    assert macs == per_channel_and_rank * channels * rank * 49


@pytest.mark.parametrize(
    ("asked", "kernel", "expected"),
    [
        ("channel", (1, 1), "linear"),
        ("spatial", (1, 1), "linear"),
        ("spatial", (5, 1), "channel"),
        ("spatial", (1, 5), "input-channel"),
        ("spatial", (3, 3), "spatial"),
        ("input-channel", (5, 1), "input-channel"),
        ("linear", (3, 3), "channel"),
    ],
)
def test_degenerate_kernels_resolve(asked, kernel, expected):
    assert resolve(asked, (8, 8, *kernel)).name == expected


def test_kernel_shape_widens_gemm_and_conv1d():
    assert [kernel_shape(shape) for shape in [(8, 4), (8, 4, 5), (8, 4, 5, 3)]] == [
        (8, 4, 1, 1),
        (8, 4, 5, 1),
        (8, 4, 5, 3),
    ]
    with pytest.raises(ValueError, match="2 to 4 dimensions, found 5"):
        kernel_shape((1, 2, 3, 4, 5))
