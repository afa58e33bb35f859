"""Random convolutional graphs from a generator that keeps its own books about which channels belong together.

Every channel of every activation has a token; blocks make, merge, repeat or drop tokens by what their operators do,
written down here once more and independently of rankfold. At the end some classes of tokens are killed: the filters
that make them become zero. What was killed must be removed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx

from .nets import Net

OPSET = 21  # the first with GroupNormalization per channel
KILLED_SHARE = 0.35


@dataclass(frozen=True)
class Activation:
    """n×c×size×size; `zero`: a dead channel carries 0 here, and not just some constant."""

    name: str
    tokens: list[int]
    size: int
    zero: bool = True


@dataclass
class Books:
    """Union-find of tokens; who makes them; what must stay, or stay in balance."""

    parents: list[int] = field(default_factory=list)
    makers: dict[int, list[tuple[str, int]]] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    frozen: set[int] = field(default_factory=set)
    balanced: list[list[list[int]]] = field(default_factory=list)
    spans: list[list[int]] = field(default_factory=list)

    def fresh(self, count: int) -> list[int]:
        first = len(self.parents)
        self.parents += range(first, first + count)
        return list(range(first, first + count))

    def root(self, token: int) -> int:
        while self.parents[token] != token:
            token = self.parents[token]
        return token

    def merge(self, first: list[int], second: list[int]) -> None:
        for one, other in zip(first, second, strict=True):
            self.parents[self.root(one)] = self.root(other)

    def make(self, vectors: str, tokens: list[int]) -> None:
        """`vectors`.weight and .bias, zero at an index, make that channel zero."""
        for index, token in enumerate(tokens):
            self.makers.setdefault(token, []).append((vectors, index))

    def balance(self, tokens: list[int], groups: int) -> None:
        size = len(tokens) // groups
        self.balanced.append([tokens[part * size : (part + 1) * size] for part in range(groups)])


@dataclass(frozen=True)
class RandomGraph:
    """A model, and for each layer the output channels that must go."""

    model: onnx.ModelProto
    dead: dict[str, set[int]]


class Generator:
    """Appends blocks to a net; a block takes an activation and returns one."""

    def __init__(self, seed: int) -> None:
        self.net = Net(channels=3, spatial=(8, 8), seed=seed)
        self.random, self.books, self.count = self.net.generator, Books(), 0
        self.unfolded: list[str] = []

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def choose(self, options):
        return options[int(self.random.integers(len(options)))]

    def op(self, kind: str, x: Activation, *inputs: str, zero: bool | None = None, **attributes) -> Activation:
        """An operator that leaves channels and size as they are."""
        output = self.net.op(kind, x.name, *inputs, channels=len(x.tokens), **attributes)
        return self.activation(output, x.tokens, x.size, x.zero if zero is None else zero)

    def activation(self, name: str, tokens: list[int], size: int, zero: bool = True) -> Activation:
        self.books.spans.append(tokens)
        self.net.channels[name] = len(tokens)
        return Activation(name, tokens, size, zero)

    def conv(self, x: Activation, out: int, kernel: int = 0, groups: int = 1, tokens: list[int] | None = None):
        """A convolution of the same size, 1×1 where a constant other than zero would meet padding."""
        kernel = kernel or self.choose((1, 3))
        kernel = kernel if x.zero else 1
        name, tokens = self.name("conv"), tokens or self.books.fresh(out)
        output = self.net.conv(x.name, name, out, (kernel, kernel), group=groups, bias=self.chance(0.7))
        self.books.rows[name] = tokens
        if self.chance(0.4):
            output = self.net.bn(output, f"{name}.bn")
            self.books.make(f"{name}.bn", tokens)
        else:
            self.books.make(name, tokens)
        return self.activation(output, tokens, x.size)

    def graph(self, blocks: list[Callable[[Generator, Activation], Activation]], heads, weights) -> RandomGraph:
        tokens = self.books.fresh(3)
        self.books.frozen.update(tokens)
        x = self.op("Relu", self.conv(Activation("input", tokens, 8), self.choose((8, 12))))
        for _ in range(int(self.random.integers(3, 7))):
            x = blocks[int(self.random.choice(len(blocks), p=weights))](self, x)
        output = self.choose(heads)(self, x)
        dead = self.killed()
        for layer, tokens in self.books.rows.items():  # constant channels of vectors are made where they are
            assert len(tokens) > 0, layer
        removed = {
            layer: {index for index, token in enumerate(tokens) if self.books.root(token) in dead}
            for layer, tokens in self.books.rows.items()
        }
        return RandomGraph(self.net.model(output, opset=OPSET), removed)

    def killed(self) -> set[int]:
        """Choose classes, give back what rules forbid, and zero the filters of the rest."""
        books = self.books
        frozen = {books.root(token) for token in books.frozen}
        made = {books.root(token) for tokens in books.rows.values() for token in tokens}
        dead = {token for token in sorted(made - frozen) if self.chance(KILLED_SHARE)}
        while (back := self._forbidden(dead)) is not None:
            dead.discard(back)
        for token, makers in books.makers.items():
            for vectors, index in makers if books.root(token) in dead else []:
                self.net.kill([index], vectors)
        return dead

    def _forbidden(self, dead: set[int]) -> int | None:
        """A class that must come back: an axis would be empty, or groups differ."""
        for span in self.books.spans:
            roots = [self.books.root(token) for token in span]
            if all(root in dead for root in roots):
                return roots[0]
        for groups in self.books.balanced:
            gone = [[root for root in map(self.books.root, group) if root in dead] for group in groups]
            most = max(gone, key=len)
            if len(most) > min(map(len, gone)):
                return self.choose(most)
        return None
