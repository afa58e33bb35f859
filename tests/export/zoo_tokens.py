"""The part of the zoo that is made of matrix products: an MLP, ConvNeXt, a transformer block, an LSTM."""

from __future__ import annotations

import numpy as np

from .nets import Net
from .zoo import Topology, head, swish


def mlp(net: Net) -> Topology:
    x = net.op("Flatten", "input", channels=192)
    x = net.op("Relu", net.bn(net.gemm(x, "a", 192, 16), "bn_a"))
    x = net.op("Tanh", net.matmul(x, "b", 16, 12))
    net.kill(net.pick(5, 16), "bn_a", bias=0.5)
    net.kill(net.pick(4, 12), "b", bias=0.25)
    return Topology((net.matmul(x, "c", 12, 5),), {"a": 5, "b": 4, "c": 0})


def convnext(net: Net) -> Topology:
    """Everything but the hidden layer is tied by the norm."""
    stem = net.conv("input", "stem", 8, (1, 1))
    x = net.op("Transpose", net.conv(stem, "depth", 8, (7, 7), group=8), perm=[0, 2, 3, 1])
    x = net.op("LayerNormalization", x, net.constant(np.ones(8)), net.constant(np.zeros(8)))
    x = swish(net, net.matmul(x, "hidden", 8, 16))
    x = net.op("Mul", net.matmul(x, "back", 16, 8), net.constant(net.generator.normal(0, 1, 8)))
    x = net.op("Add", stem, net.op("Transpose", x, perm=[0, 3, 1, 2]))
    net.kill(net.pick(2, 8), "stem", "depth")
    net.kill(net.pick(6, 16), "hidden", bias=0.3)
    return Topology(head(net, x), {"stem": 0, "hidden": 6}, {"stem": "ties as a whole"})


def transformer(net: Net) -> Topology:
    """Tokens of 8 numbers, two heads of 4: one head's values are zero, so that the head goes."""
    x = net.op("Transpose", net.op("Reshape", net.conv("input", "stem", 8), net.constant([0, 8, 64])), perm=[0, 2, 1])
    normed = net.op("LayerNormalization", x, net.constant(np.ones(8)), net.constant(np.zeros(8)))
    heads = []
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        split = net.op("Reshape", net.matmul(normed, name, 8, 8), net.constant([0, 64, 2, 4]))
        heads.append(net.op("Transpose", split, perm=perm))
    weights = net.op("Softmax", net.op("MatMul", heads[0], heads[1]), axis=-1)
    mixed = net.op("Transpose", net.op("MatMul", weights, heads[2]), perm=[0, 2, 1, 3])
    attended = net.matmul(net.op("Reshape", mixed, net.constant([0, 64, 8])), "out", 8, 8)
    x = net.op("Add", x, attended)
    hidden = net.op("Relu", net.matmul(x, "hidden", 8, 16))
    x = net.op("Add", x, net.matmul(hidden, "back", 16, 8))
    net.kill([4, 5, 6, 7], "v")
    net.kill(net.pick(5, 16), "hidden", bias=0.5)
    x = net.op("Transpose", x, perm=[0, 2, 1])
    return Topology(head(net, x), {"q": 4, "hidden": 5, "stem": 0}, {"stem": "ties as a whole"})


def recurrent(net: Net) -> Topology:
    """The columns of a picture read by an LSTM: what is in front of it stays, what is further in front goes."""
    x = net.block(net.block("input", "a", 8), "b", 4)
    x = net.op("Reshape", net.op("Transpose", x, perm=[3, 0, 1, 2]), net.constant([8, -1, 32]), channels=32)
    shapes = ((1, 24, 32), (1, 24, 6), (1, 48))
    weights = [net.constant(net.generator.normal(0, 0.2, shape)) for shape in shapes]
    x = net.op("LSTM", x, *weights, hidden_size=6, channels=6)
    x = net.op("Squeeze", net.op("Gather", x, net.constant(-1), axis=0), net.constant([0]))
    net.kill(net.pick(3, 8), "bn_a")
    net.kill([1], "bn_b")
    return Topology((net.gemm(x, "fc", 6, 5),), {"a": 3, "b": 0}, {"b": "(LSTM) is not understood"})
