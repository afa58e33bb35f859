"""The factorisation forms, one table: how a kernel becomes a matrix, and a pair of factors a kernel again.

A kernel is o×i×h×w (out channels, in channels, height, width). A rank-r factorisation writes its matrix as
left · right, and both sides are kernels of ordinary convolutions: `first` (r×i×…) runs before `second`
(o×r×…). einops patterns say all of it once, for numpy arrays and torch tensors alike.

The channel form is that of Alvarez & Salzmann, "Compression-aware Training of Deep Networks" (NIPS 2017);
spatial is the separable scheme of Jaderberg et al. (BMVC 2014).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
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


class AnyForm(ABC):
    """What all forms have: how large their factors are and what these cost.

    One number, `rank`, walks through a form's sizes; `ranks` are the channels between its factors at that number.
    """

    name: str

    def __str__(self) -> str:
        return self.name

    @property
    @abstractmethod
    def walked(self) -> tuple[frozenset[str], ...]:
        """For each factor the axes whose stride, dilation and padding it has."""

    @abstractmethod
    def factor_shapes(self, shape: Sequence[int], rank: int) -> tuple[KernelShape, ...]:
        """Kernel shapes of the convolutions at `rank`, in the order they run."""

    @abstractmethod
    def most(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The largest ranks: there the factors can reproduce any kernel."""

    def full_rank(self, shape: Sequence[int]) -> int:
        """The number at which all ranks are the largest."""
        return max(self.most(shape))

    def ranks(self, shape: Sequence[int], rank: int) -> tuple[int, ...]:
        """Channels between the factors at `rank`, each cut to its largest."""
        return tuple(min(rank, most) for most in self.most(shape))

    @abstractmethod
    def shapes_at(self, shape: Sequence[int], ranks: Sequence[int]) -> tuple[KernelShape, ...]:
        """Kernel shapes of the convolutions with these channels between them, in the order they run."""

    def parameters(self, shape: Sequence[int], rank: int) -> int:
        """Weights in all factors, without the bias."""
        return sum(_size(factor) for factor in self.factor_shapes(shape, rank))

    def macs(self, shape: Sequence[int], rank: int, pixels: Pixels) -> int:
        """Multiply-accumulates of all factors for one image."""
        return self.macs_of(self.factor_shapes(shape, rank), pixels)

    def macs_of(self, factors: Iterable[Sequence[int]], pixels: Pixels) -> int:
        """The same for factors of any shapes."""
        sizes = self.outputs(pixels)
        return sum(_size(factor) * height * width for factor, (height, width) in zip(factors, sizes, strict=True))

    def outputs(self, pixels: Pixels) -> list[tuple[int, int]]:
        """Height and width of what each factor puts out: the output's along the axes walked so far."""
        return outputs_after(self.walked, pixels)

    def break_even(self, shape: Sequence[int], pixels: Pixels) -> int:
        """The largest rank with strictly fewer MACs than the dense layer; 0 if there is none."""
        dense, ranks = dense_macs(shape, pixels), range(1, self.full_rank(shape) + 1)
        return bisect_left(ranks, dense, key=lambda rank: self.macs(shape, rank, pixels))


def outputs_after(walked: Sequence[frozenset[str]], pixels: Pixels) -> list[tuple[int, int]]:
    """Height and width after each of several convolutions that walk these axes."""
    found, done = [], frozenset[str]()
    for axes in walked:
        done |= axes
        found.append((pixels.out_h if "h" in done else pixels.in_h, pixels.out_w if "w" in done else pixels.in_w))
    return found


@dataclass(frozen=True)
class Form(AnyForm):
    """One row of the table. `strided` are the axes that the first factor walks, with its stride and taps."""

    name: str
    matrix: str
    first: str
    second: str
    strided: frozenset[str]

    @property
    def walked(self) -> tuple[frozenset[str], ...]:
        """See `AnyForm`."""
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
        """r×i×…, o×r×…."""
        o, i, h, w = shape
        first_h, first_w = (h if "h" in self.strided else 1), (w if "w" in self.strided else 1)
        return (rank, i, first_h, first_w), (o, rank, h // first_h, w // first_w)

    def shapes_at(self, shape: Sequence[int], ranks: Sequence[int]) -> tuple[KernelShape, KernelShape]:
        """r×i×…, o×r×…."""
        return self.factor_shapes(shape, *ranks)

    def most(self, shape: Sequence[int]) -> tuple[int]:
        """The smaller side of the matrix."""
        (_, i, first_h, first_w), (o, _, h, w) = self.factor_shapes(shape, 1)
        return (min(i * first_h * first_w, o * h * w),)

    def break_even(self, shape: Sequence[int], pixels: Pixels) -> int:
        """As for all, also above the full rank: MACs are linear in the rank."""
        return (dense_macs(shape, pixels) - 1) // self.macs(shape, 1, pixels)


@dataclass(frozen=True)
class Tucker2(AnyForm):
    """1×1 i→r₁, h×w r₁→r₂, 1×1 r₂→o (Kim et al., ICLR 2016): no matrix, two ranks.

    One number stands for both, each cut to the channels of its side (design §4: r₁ = r₂).
    """

    name: str = "tucker-2"

    @property
    def walked(self) -> tuple[frozenset[str], ...]:
        """See `AnyForm`."""
        return frozenset(), frozenset("hw"), frozenset()

    def most(self, shape: Sequence[int]) -> tuple[int, int]:
        """(i, o): there the core is the kernel."""
        return shape[1], shape[0]

    def factor_shapes(self, shape: Sequence[int], rank: int) -> tuple[KernelShape, ...]:
        """r₁×i, r₂×r₁×h×w, o×r₂."""
        return self.shapes_at(shape, self.ranks(shape, rank))

    def shapes_at(self, shape: Sequence[int], ranks: Sequence[int]) -> tuple[KernelShape, ...]:
        """r₁×i, r₂×r₁×h×w, o×r₂."""
        o, i, h, w = shape
        into, out = ranks
        return (into, i, 1, 1), (out, into, h, w), (o, out, 1, 1)


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
