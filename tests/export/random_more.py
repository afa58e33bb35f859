"""More blocks for random graphs: other layouts, operators that tie a whole axis, shared weights; and the heads."""

from __future__ import annotations

import numpy as np

from .random_blocks import (
    activate,
    concatenated,
    depthwise,
    excited,
    gathered,
    group_normalized,
    grouped,
    instance_normalized,
    multiplied,
    normalized,
    padded,
    plain,
    pooled,
    residual,
    resized,
    self_gated,
    shuffled,
    sliced,
    split,
    strided,
    transposed,
)
from .random_graphs import Activation, Generator


def _linear(g: Generator, name: str, x: str, fan_in: int, out: int) -> tuple[str, list[int]]:
    tokens, layer = g.books.fresh(out), g.name(name)
    output = g.net.matmul(x, layer, fan_in, out)
    g.books.rows[layer] = tokens
    g.books.make(layer, tokens)
    g.books.spans.append(tokens)
    return output, tokens


def channels_last(g: Generator, x: Activation) -> Activation:
    """A 1×1 convolution as a MatMul over the last axis."""
    last = g.net.op("Transpose", x.name, perm=[0, 2, 3, 1])
    output, tokens = _linear(g, "linear", last, len(x.tokens), 8)
    return activate(g, g.activation(g.net.op("Transpose", output, perm=[0, 3, 1, 2]), tokens, x.size))


def to_blocks(g: Generator, x: Activation) -> Activation:
    """Four pixels become four channels, in the order of DCR."""
    if x.size < 4 or len(x.tokens) > 8:
        return plain(g, x)
    name = g.net.op("SpaceToDepth", x.name, blocksize=2)
    return g.activation(name, x.tokens * 4, x.size // 2, x.zero)


def from_blocks(g: Generator, x: Activation) -> Activation:
    """Four channels become four pixels: they live and die together."""
    few = len(x.tokens) // 4
    if x.size > 8 or few < 2 or len(x.tokens) % 4 or not x.zero:
        return plain(g, x)
    mode = g.choose(("DCR", "CRD"))
    parts = [x.tokens[k::few] if mode == "DCR" else x.tokens[4 * k : 4 * k + 4] for k in range(few)]
    for part in parts:
        g.books.merge(part[:1] * 3, part[1:])
    name = g.net.op("DepthToSpace", x.name, blocksize=2, mode=mode)
    return g.activation(name, [part[0] for part in parts], x.size * 2)


def there_and_back(g: Generator, x: Activation) -> Activation:
    """Pixels in a row, squeezed and unsqueezed; the shape now and then computed from the batch."""
    rows, shape = [len(x.tokens), x.size * x.size], g.net.constant([0, len(x.tokens), x.size * x.size])
    if g.chance(0.5):
        batch = g.net.op("Gather", g.net.op("Shape", x.name), g.net.constant([0]), axis=0)
        shape = g.net.op("Concat", batch, g.net.constant(rows), axis=0)
    y = g.net.op("Unsqueeze", g.net.op("Tanh", g.net.op("Reshape", x.name, shape)), g.net.constant([3]))
    y = g.net.op("Reshape", y, g.net.constant([0, 0, x.size, x.size]))
    return g.activation(y, x.tokens, x.size, x.zero)


def shared(g: Generator, x: Activation) -> Activation:
    """One weight for two convolutions: of the picture, and of its maxima."""
    if not x.zero:
        return plain(g, x)
    name, tokens, twin = g.name("shared"), g.books.fresh(8), g.books.fresh(8)
    other = g.net.op("MaxPool", x.name, kernel_shape=[3, 3], pads=[1] * 4)
    one = g.net.op("Relu", g.net.conv(x.name, name, 8))
    two = g.net.op("Relu", g.net.op("Conv", other, f"{name}.weight", f"{name}.bias", pads=[1] * 4, channels=8))
    g.books.merge(tokens, twin)
    g.books.rows[name] = tokens
    g.books.make(name, tokens)
    return g.activation(g.net.op("Add", one, two), tokens, x.size)


def attended(g: Generator, x: Activation) -> Activation:
    """Every pixel a mean of all, by how alike they are: what the likeness is summed over stays."""
    if not x.zero or x.size > 4:
        return plain(g, x)
    query = g.conv(x, 4, 1)
    g.books.frozen.update(query.tokens)
    pixels = x.size * x.size
    rows = [g.net.op("Reshape", one.name, g.net.constant([0, len(one.tokens), pixels])) for one in (query, x)]
    scores = g.net.op("Softmax", g.net.op("MatMul", g.net.op("Transpose", rows[0], perm=[0, 2, 1]), rows[0]))
    mixed = g.net.op("MatMul", rows[1], scores, channels=len(x.tokens))
    return g.activation(g.net.op("Reshape", mixed, g.net.constant([0, 0, x.size, x.size])), x.tokens, x.size)


def tied(g: Generator, x: Activation) -> Activation:
    """Operators that see all channels at once: nothing may go."""
    g.books.frozen.update(x.tokens)
    kind = g.choose(("Softmax", "LRN", "LayerNormalization"))
    if kind == "Softmax":
        return plain(g, g.op(kind, x, axis=1, zero=False))
    if kind == "LRN":
        return plain(g, g.op(kind, x, size=3, zero=False))
    last = g.net.op("Transpose", x.name, perm=[0, 2, 3, 1])
    size = len(x.tokens)
    last = g.net.op(kind, last, g.net.constant(np.ones(size)), g.net.constant(np.zeros(size)))
    return plain(g, g.activation(g.net.op("Transpose", last, perm=[0, 3, 1, 2]), x.tokens, x.size, zero=False))


def not_understood(g: Generator, x: Activation) -> Activation:
    """Rare: what rankfold has no rule for."""
    g.books.frozen.update(x.tokens)
    return plain(g, g.op("CumSum", x, g.net.constant(1), zero=False))


def averaged(g: Generator, x: Activation) -> str:
    """Global average pool and classifier."""
    flat = g.net.op("Flatten", g.net.op(g.choose(("GlobalAveragePool", "GlobalMaxPool")), x.name))
    return _classifier(g, flat, len(x.tokens))


def flattened(g: Generator, x: Activation) -> str:
    """Every channel owns a block of columns; now and then a hidden layer by MatMul."""
    features = len(x.tokens) * x.size * x.size
    shape = g.net.constant([-1, features])
    if g.chance(0.5):
        return _classifier(g, g.net.op("Reshape", x.name, shape), features)
    output, _ = _linear(g, "hidden", g.net.op("Reshape", x.name, shape), features, 12)
    return _linear_out(g, g.net.op("Relu", output), 12)


def picture(g: Generator, x: Activation) -> str:
    """Channels of the output stay."""
    y = g.conv(x, 3)
    g.books.frozen.update(y.tokens)
    return y.name


def _classifier(g: Generator, x: str, features: int) -> str:
    name = g.name("fc")
    g.books.rows[name] = g.books.fresh(5)
    g.books.frozen.update(g.books.rows[name])
    return g.net.gemm(x, name, features, 5)


def _linear_out(g: Generator, x: str, features: int) -> str:
    output, tokens = _linear(g, "out", x, features, 5)
    g.books.frozen.update(tokens)
    return output


HEADS = (averaged, flattened, picture)
WEIGHTED = {
    plain: 2, depthwise: 2, multiplied: 1, grouped: 2, residual: 3, concatenated: 2, split: 2, sliced: 1, strided: 2,
    padded: 1, gathered: 1, shuffled: 2, pooled: 2, resized: 1, transposed: 2, excited: 2, self_gated: 1, normalized: 1,
    instance_normalized: 1, group_normalized: 1, channels_last: 2, to_blocks: 2, from_blocks: 2, there_and_back: 2,
    shared: 1, attended: 2, tied: 1.5, not_understood: 0.3,
}  # fmt: skip
BLOCKS = list(WEIGHTED)
WEIGHTS = np.array(list(WEIGHTED.values())) / sum(WEIGHTED.values())


def random_graph(seed: int):
    """The model of a seed, and what must go from each of its layers."""
    return Generator(seed).graph(BLOCKS, HEADS, WEIGHTS)
