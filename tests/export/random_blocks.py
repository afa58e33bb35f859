"""The blocks that random graphs are made of: what each does to tokens is said here, next to its operators."""

from __future__ import annotations

import numpy as np

from .random_graphs import Activation, Generator

ZERO_KEEPING = ("Relu", "LeakyRelu", "Tanh", "HardSwish", "Elu", "Softsign", "Abs", "Erf")
SHIFTING = ("Sigmoid", "Softplus", "HardSigmoid", "Exp")


def activate(g: Generator, x: Activation) -> Activation:
    if g.chance(0.2):
        return g.op(g.choose(SHIFTING[:3]), x, zero=False)
    if g.chance(0.2):
        slope = g.net.constant(g.random.uniform(0, 1, g.choose(((len(x.tokens), 1, 1), (1,)))))
        return g.op("PRelu", x, slope)
    if g.chance(0.2):
        return g.op("Clip", x, g.net.constant(0.0), g.net.constant(6.0))
    return g.op(g.choose(ZERO_KEEPING), x)


def plain(g: Generator, x: Activation) -> Activation:
    return activate(g, g.conv(x, g.choose((8, 12))))


def depthwise(g: Generator, x: Activation) -> Activation:
    if len(set(x.tokens)) < len(x.tokens):
        return plain(g, x)
    return activate(g, g.conv(x, len(x.tokens), groups=len(x.tokens), tokens=x.tokens))


def multiplied(g: Generator, x: Activation) -> Activation:
    """Each channel makes two next to each other."""
    if len(x.tokens) > 12:
        return plain(g, x)
    tokens = [token for token in x.tokens for _ in range(2)]
    return activate(g, g.conv(x, len(tokens), groups=len(x.tokens), tokens=tokens))


def grouped(g: Generator, x: Activation) -> Activation:
    if len(x.tokens) % 4:
        return plain(g, x)
    g.books.balance(x.tokens, 2)
    y = g.conv(x, 8, groups=2)
    g.books.balance(y.tokens, 2)
    return activate(g, y)


def residual(g: Generator, x: Activation) -> Activation:
    y = g.conv(activate(g, g.conv(x, 8)), len(x.tokens))
    g.books.merge(x.tokens, y.tokens)
    total = g.net.op(g.choose(("Add", "Sub")), x.name, y.name)
    return g.op("Relu", g.activation(total, x.tokens, x.size, x.zero))


def concatenated(g: Generator, x: Activation) -> Activation:
    if len(x.tokens) > 16:
        return plain(g, x)
    y = activate(g, g.conv(x, 4))
    both = (x, y) if g.chance(0.5) else (y, x)
    name = g.net.concat(*(one.name for one in both))
    return g.activation(name, both[0].tokens + both[1].tokens, x.size, x.zero and y.zero)


def split(g: Generator, x: Activation) -> Activation:
    half = len(x.tokens) // 2
    names = g.net.split(x.name, half, len(x.tokens) - half)
    left = g.activation(names[0], x.tokens[:half], x.size, x.zero)
    right = activate(g, g.conv(g.activation(names[1], x.tokens[half:], x.size, x.zero), 4))
    name = g.net.concat(left.name, right.name)
    return g.activation(name, left.tokens + right.tokens, x.size, left.zero and right.zero)


def sliced(g: Generator, x: Activation) -> Activation:
    """Some channels, every step-th of them, forwards or backwards."""
    step = g.choose((1, 1, 2, -1, -2))
    start, stop = (1, len(x.tokens)) if step > 0 else (len(x.tokens) - 1, -(1 << 40))
    bounds = [g.net.constant([number]) for number in (start, stop, 1, step)]
    tokens = x.tokens[1::step] if step > 0 else x.tokens[::step]
    return g.activation(g.net.op("Slice", x.name, *bounds), tokens, x.size, x.zero)


def strided(g: Generator, x: Activation) -> Activation:
    """The pixels of an option-A shortcut, with new channels around the old."""
    if x.size < 4 or len(x.tokens) > 12 or not x.zero:
        return plain(g, x)
    bounds = [g.net.constant(pair) for pair in ([0, 0], [99, 99], [2, 3], [2, 2])]
    small = g.activation(g.net.op("Slice", x.name, *bounds), x.tokens, x.size // 2)
    pads = g.net.constant([0, 2, 0, 0, 0, 2, 0, 0])
    new = g.books.fresh(2), g.books.fresh(2)
    wide = g.activation(g.net.op("Pad", small.name, pads), new[0] + x.tokens + new[1], small.size)
    y = g.conv(small, len(wide.tokens))
    g.books.merge(wide.tokens, y.tokens)
    return g.op("Relu", g.activation(g.net.op("Add", wide.name, y.name), wide.tokens, small.size))


def padded(g: Generator, x: Activation) -> Activation:
    """Pixels around the picture: zeros, or the border once more."""
    mode = g.choose(("constant", "reflect", "edge")) if x.zero else g.choose(("reflect", "edge"))
    x = g.activation(
        g.net.op("Pad", x.name, g.net.constant([0, 0, 1, 1, 0, 0, 1, 1]), mode=mode), x.tokens, x.size + 2, x.zero
    )
    name, tokens = g.name("conv"), g.books.fresh(8)
    output = g.net.conv(x.name, name, 8, (3, 3), pads=[0] * 4)
    g.books.rows[name] = tokens
    g.books.make(name, tokens)
    return activate(g, g.activation(output, tokens, x.size - 2))


def gathered(g: Generator, x: Activation) -> Activation:
    order = g.random.permutation(len(x.tokens))[: max(len(x.tokens) - g.choose((0, 2)), 4)]
    name = g.net.op("Gather", x.name, g.net.constant(order), axis=1)
    return g.activation(name, [x.tokens[index] for index in order], x.size, x.zero)


def shuffled(g: Generator, x: Activation) -> Activation:
    groups, size, channels = 2, x.size, len(x.tokens)
    if channels % groups:
        return plain(g, x)
    target = g.net.constant([0, groups, channels // groups, size, size])
    y = g.net.op("Transpose", g.net.op("Reshape", x.name, target), perm=[0, 2, 1, 3, 4])
    y = g.net.op("Reshape", y, g.net.constant([0, channels, size, size]))
    tokens = [
        token for pair in zip(x.tokens[: channels // 2], x.tokens[channels // 2 :], strict=True) for token in pair
    ]
    return g.activation(y, tokens, size, x.zero)


def pooled(g: Generator, x: Activation) -> Activation:
    if x.size < 4:
        return plain(g, x)
    kind = g.choose(("MaxPool", "AveragePool", *(("LpPool",) if x.zero else ())))
    return g.activation(g.net.op(kind, x.name, kernel_shape=[2, 2], strides=[2, 2]), x.tokens, x.size // 2, x.zero)


def resized(g: Generator, x: Activation) -> Activation:
    if x.size > 8:
        return plain(g, x)
    scales = g.net.constant([1.0, 1.0, 2.0, 2.0])
    name = g.net.op("Resize", x.name, "", scales, mode=g.choose(("nearest", "linear")))
    return g.activation(name, x.tokens, x.size * 2, x.zero)


def transposed(g: Generator, x: Activation) -> Activation:
    """Upsampling by a convolution: plain, one filter a channel, or in two groups."""
    if x.size > 8 or not x.zero or len(set(x.tokens)) < len(x.tokens) or len(x.tokens) % 2:
        return plain(g, x)
    groups, name = g.choose((1, 2, len(x.tokens))), g.name("up")
    tokens = x.tokens if groups > 2 else g.books.fresh(8)
    output = g.net.transposed(x.name, name, len(tokens), groups)
    g.books.rows[name] = tokens
    g.books.make(name, tokens)
    if groups == 2:
        g.books.balance(x.tokens, 2)
        g.books.balance(tokens, 2)
    return activate(g, g.activation(output, tokens, x.size * 2))


def excited(g: Generator, x: Activation) -> Activation:
    """Squeeze and excite, the gate written out by Expand now and then."""
    if not x.zero:
        return plain(g, x)
    down = g.op("Relu", g.conv(g.activation(g.net.op("GlobalAveragePool", x.name), x.tokens, 1), 4, 1))
    up = g.conv(down, len(x.tokens), 1)
    g.books.merge(x.tokens, up.tokens)
    gate = g.net.op("Sigmoid", up.name)
    if g.chance(0.4):
        gate = g.net.op("Expand", gate, g.net.constant([1, len(x.tokens), x.size, x.size]))
    return g.activation(g.net.op("Mul", x.name, gate), x.tokens, x.size)


def self_gated(g: Generator, x: Activation) -> Activation:
    mean = g.net.op("ReduceMean", x.name, g.net.constant([2, 3]))
    return g.activation(g.net.op("Mul", x.name, g.net.op("Sigmoid", mean)), x.tokens, x.size, x.zero)


def normalized(g: Generator, x: Activation) -> Activation:
    """BatchNorm behind a pool, where no layer can take it."""
    if x.size < 2:
        return plain(g, x)
    same = g.net.op("MaxPool", x.name, kernel_shape=[3, 3], pads=[1] * 4)
    name = g.net.bn(same, g.name("norm"))
    return g.activation(name, x.tokens, x.size, zero=False)


def instance_normalized(g: Generator, x: Activation) -> Activation:
    scale, shift = g.random.normal(1, 0.2, len(x.tokens)), g.random.normal(0, 1, len(x.tokens))
    return g.op("InstanceNormalization", x, g.net.constant(scale), g.net.constant(shift), zero=False)


def group_normalized(g: Generator, x: Activation) -> Activation:
    size = 2
    if len(x.tokens) % size or not x.zero:
        return plain(g, x)
    for index in range(0, len(x.tokens), size):
        g.books.merge(x.tokens[index : index + 1], x.tokens[index + 1 : index + 2])
    vectors = (g.net.constant(g.random.normal(1, 0.2, len(x.tokens))), g.net.constant(np.zeros(len(x.tokens))))
    return g.op("GroupNormalization", x, *vectors, num_groups=len(x.tokens) // size, zero=x.zero)
