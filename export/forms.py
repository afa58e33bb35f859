"""The factorisation forms, one table: how a kernel becomes a matrix, and a pair of factors a kernel again.

A kernel is o×i×h×w (out channels, in channels, height, width). A rank-r factorisation writes its matrix as
left · right, and both sides are kernels of ordinary convolutions: `first` (r×i×…) runs before `second`
(o×r×…). einops patterns say all of it once, for numpy arrays and torch tensors alike.

The channel form is that of Alvarez & Salzmann, "Compression-aware Training of Deep Networks" (NIPS 2017);
spatial is the separable scheme of Jaderberg et al. (BMVC 2014).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from einops import rearrange

KernelShape = tuple[int, int, int, int]


class Pixels(NamedTuple):
    """Spatial size of a layer's input (as the layer sees it, without padding) and of its output."""

    in_h: int
    in_w: int
    out_h: int
    out_w: int


@dataclass(frozen=True)
class Form:
    """One row of the table. `strided` are the axes that the first factor walks, with its stride and taps."""

    name: str
    matrix: str
    first: str
    second: str
    strided: frozenset[str]

    @property
    def walked(self) -> tuple[frozenset[str], ...]:
        """For each factor the axes whose stride, dilation and padding it has."""
        return self.strided, frozenset("hw") - self.strided

    def matricize(self, kernel: Any) -> Any:
        """Kernel o×i×h×w (numpy or torch) as a matrix: rows × columns."""
        return rearrange(kernel, self.matrix)

    def tensorize(self, matrix: Any, shape: Sequence[int]) -> Any:
        """The inverse of `matricize`, for a kernel of `shape`."""
        source, target = self.matrix.split(" -> ")
        return rearrange(matrix, f"{target} -> {source}", **_axes(self, shape))

    def kernels(self, left: Any, right: Any, shape: Sequence[int]) -> tuple[Any, Any]:
        """The factors of `matricize(kernel) ≈ left @ right` as the kernels of two convolutions."""
        axes = _axes(self, shape)
        return (
            rearrange(left, self.first, **_present(axes, self.first)),
            rearrange(right, self.second, **_present(axes, self.second)),
        )

    def factor_shapes(self, shape: Sequence[int], rank: int) -> tuple[KernelShape, KernelShape]:
        """Kernel shapes of the two convolutions at `rank`."""
        o, i, h, w = shape
        first_h, first_w = (h if "h" in self.strided else 1), (w if "w" in self.strided else 1)
        return (rank, i, first_h, first_w), (o, rank, h // first_h, w // first_w)

    def full_rank(self, shape: Sequence[int]) -> int:
        """The smaller side of the matrix: at this rank a factorisation can reproduce any kernel."""
        (_, i, first_h, first_w), (o, _, h, w) = self.factor_shapes(shape, 1)
        return min(i * first_h * first_w, o * h * w)

    def parameters(self, shape: Sequence[int], rank: int) -> int:
        """Weights in both factors, without the bias."""
        return sum(_size(factor) for factor in self.factor_shapes(shape, rank))

    def macs(self, shape: Sequence[int], rank: int, pixels: Pixels) -> int:
        """Multiply-accumulates of both factors for one image; linear in `rank`.

        The first factor already has the output's size along the axes it strides over, the input's along
        the others.
        """
        first, second = self.factor_shapes(shape, rank)
        height = pixels.out_h if "h" in self.strided else pixels.in_h
        width = pixels.out_w if "w" in self.strided else pixels.in_w
        return _size(first) * height * width + _size(second) * pixels.out_h * pixels.out_w

    def break_even(self, shape: Sequence[int], pixels: Pixels) -> int:
        """The largest rank with strictly fewer MACs than the dense layer; 0 if there is none."""
        return (dense_macs(shape, pixels) - 1) // self.macs(shape, 1, pixels)


@dataclass(frozen=True)
class Tucker2:
    """1×1 i→r₁, h×w r₁→r₂, 1×1 r₂→o (Kim et al., ICLR 2016): no matrix, two ranks.

    One number stands for both, each cut to the channels of its side (design §4: r₁ = r₂).
    """

    name: str = "tucker-2"
    walked: tuple[frozenset[str], ...] = (frozenset(), frozenset("hw"), frozenset())

    def ranks(self, shape: Sequence[int], rank: int) -> tuple[int, int]:
        """(r₁, r₂)."""
        return min(rank, shape[1]), min(rank, shape[0])

    def factor_shapes(self, shape: Sequence[int], rank: int) -> tuple[KernelShape, ...]:
        """Kernel shapes of the three convolutions."""
        o, i, h, w = shape
        into, out = self.ranks(shape, rank)
        return (into, i, 1, 1), (out, into, h, w), (o, out, 1, 1)

    def full_rank(self, shape: Sequence[int]) -> int:
        """The larger number of channels: there the core is the kernel."""
        return max(shape[0], shape[1])

    def parameters(self, shape: Sequence[int], rank: int) -> int:
        """Weights of the three factors, without the bias."""
        return sum(_size(factor) for factor in self.factor_shapes(shape, rank))

    def macs(self, shape: Sequence[int], rank: int, pixels: Pixels) -> int:
        """Multiply-accumulates for one image: the first factor at the input's size, the others at the output's."""
        first, core, last = self.factor_shapes(shape, rank)
        return _size(first) * pixels.in_h * pixels.in_w + (_size(core) + _size(last)) * pixels.out_h * pixels.out_w

    def break_even(self, shape: Sequence[int], pixels: Pixels) -> int:
        """The largest rank with strictly fewer MACs than the dense layer; 0 if there is none."""
        dense, full = dense_macs(shape, pixels), self.full_rank(shape)
        return next((rank for rank in range(full, 0, -1) if self.macs(shape, rank, pixels) < dense), 0)


FORMS: Mapping[str, Form] = {
    form.name: form
    for form in (
        Form("channel", "o i h w -> (i h w) o", "(i h w) r -> r i h w", "r o -> o r 1 1", frozenset("hw")),
        Form("input-channel", "o i h w -> i (h w o)", "i r -> r i 1 1", "r (h w o) -> o r h w", frozenset()),
        Form("spatial", "o i h w -> (i h) (o w)", "(i h) r -> r i h 1", "r (o w) -> o r 1 w", frozenset("h")),
        Form("linear", "o i 1 1 -> i o", "i r -> r i 1 1", "r o -> o r 1 1", frozenset("hw")),
    )
}


TUCKER2 = Tucker2()
AnyForm = Form | Tucker2


def resolve_any(name: str, shape: Sequence[int]) -> AnyForm:
    """The same with tucker-2, which on a 1×1 kernel is linear too."""
    return TUCKER2 if name == TUCKER2.name and max(shape[2:]) > 1 else resolve(_matrix_name(name), shape)


def _matrix_name(name: str) -> str:
    return "linear" if name == TUCKER2.name else name


def resolve(name: str, shape: Sequence[int]) -> Form:
    """The form that `name` comes down to for a kernel of `shape`.

    1×1 kernels are linear whatever was asked for, and linear on a larger kernel is the channel form.
    A separable kernel has one spatial axis only: spatial on k×1 is the channel form (k×1, then 1×1), on
    1×k the input-channel form (1×1, then 1×k).
    """
    _, _, h, w = shape
    if h == w == 1:
        return FORMS["linear"]
    if name == "linear" or (name == "spatial" and w == 1):
        return FORMS["channel"]
    return FORMS["input-channel" if name == "spatial" and h == 1 else name]


def kernel_shape(shape: Sequence[int]) -> KernelShape:
    """A Gemm's o×i, a Conv1d's o×i×k or a Conv2d's o×i×h×w as o×i×h×w; a Conv1d's k is the height.

    >>> kernel_shape((8, 4, 5))
    (8, 4, 5, 1)
    """
    if not 2 <= len(shape) <= 4:
        raise ValueError(f"expected a kernel of 2 to 4 dimensions, found {len(shape)}")
    o, i, *spatial = (int(size) for size in shape)
    h, w = (*spatial, 1, 1)[:2]
    return o, i, h, w


def dense_macs(shape: Sequence[int], pixels: Pixels) -> int:
    """Multiply-accumulates of the layer itself for one image; `i` is the input channels of one group."""
    return _size(shape) * pixels.out_h * pixels.out_w


def _size(shape: Sequence[int]) -> int:
    o, i, h, w = shape
    return o * i * h * w


def _axes(form: Form, shape: Sequence[int]) -> dict[str, int]:
    return _present(dict(zip("oihw", shape, strict=True)), form.matrix)


def _present(axes: dict[str, int], pattern: str) -> dict[str, int]:
    names = pattern.replace("(", " ").replace(")", " ").split()
    return {axis: size for axis, size in axes.items() if axis in names}
