"""More of the zoo: decoders, norms, tokens, several inputs, and channels that change their places."""

from __future__ import annotations

import numpy as np

from .nets import Net
from .zoo import Topology, head, shuffle


def unet(net: Net) -> Topology:
    down = net.block("input", "down", 8)
    deep = net.block(net.op("MaxPool", down, kernel_shape=[2, 2], strides=[2, 2]), "deep", 12)
    x = net.concat(down, net.op("Relu", net.transposed(deep, "up", 8)))
    x = net.block(x, "last", 8)
    net.kill(net.pick(2, 8), "bn_down")
    net.kill(net.pick(4, 12), "bn_deep")
    net.kill(net.pick(3, 8), "up", bias=-1.0)
    return Topology((net.conv(x, "mask", 2, (1, 1)),), {"down": 2, "deep": 4, "up": 3, "last": 0, "mask": 0})


def autoencoder(net: Net) -> Topology:
    x = net.block("input", "a", 8)
    x = net.op("Relu", net.transposed(x, "depth", 8, group=8))
    x = net.op("Relu", net.transposed(x, "grouped", 8, group=2))
    net.kill([1, 6], "bn_a")
    net.kill([1, 6], "depth")
    net.kill([2, 4], "grouped")
    return Topology((net.conv(x, "picture", 3),), {"a": 2, "grouped": 2})


def fpn_detector(net: Net) -> Topology:
    """Two levels, added after upsampling; class and box heads are outputs."""
    fine = net.block("input", "fine", 8)
    coarse = net.block(net.op("MaxPool", fine, kernel_shape=[2, 2], strides=[2, 2]), "coarse", 8)
    up = net.op(
        "Resize", net.conv(coarse, "lateral", 8, (1, 1)), "", net.constant([1.0, 1.0, 2.0, 2.0]), mode="nearest"
    )
    x = net.op("Add", up, net.conv(fine, "lateral.fine", 8, (1, 1)))
    towers = [net.op("Relu", net.conv(x, name, 8)) for name in ("tower.class", "tower.box")]
    outputs = (net.conv(towers[0], "class", 4, (1, 1)), net.op("Sigmoid", net.conv(towers[1], "box", 4, (1, 1))))
    net.kill(net.pick(2, 8), "bn_fine")
    net.kill(net.pick(3, 8), "bn_coarse")
    net.kill(net.pick(4, 8), "lateral", "lateral.fine")
    net.kill(net.pick(1, 8), "tower.class")
    removed = {"fine": 2, "coarse": 3, "lateral": 4, "tower.class": 1, "tower.box": 0, "class": 0, "box": 0}
    return Topology(outputs, removed, {"class": "graph output"})


def resnext(net: Net) -> Topology:
    stem = net.block("input", "stem", 8)
    x = net.block(stem, "one", 8, (1, 1))
    x = net.op("Relu", net.bn(net.conv(x, "two", 8, group=2), "bn_two"))
    x = net.op("Add", stem, net.conv(x, "three", 8, (1, 1)))
    net.kill([0, 5], "bn_one")
    net.kill([3, 1, 4, 7], "bn_two")
    return Topology(head(net, x), {"stem": 0, "one": 2, "two": 4})


def pixel_shuffle(net: Net) -> Topology:
    x = net.block("input", "a", 8)
    x = net.op("DepthToSpace", net.conv(x, "b", 16), channels=4, blocksize=2, mode="CRD")
    net.kill(net.pick(3, 8), "bn_a")
    net.kill([4, 5, 6, 7, 9], "b")
    return Topology((net.conv(x, "picture", 3),), {"a": 3, "b": 4})


def space_to_depth(net: Net) -> Topology:
    x = net.op("SpaceToDepth", net.block("input", "a", 4), channels=16, blocksize=2)
    x = net.op("DepthToSpace", net.conv(x, "b", 16), channels=4, blocksize=2, mode="DCR")
    net.kill([2], "bn_a")
    net.kill([1, 5, 9, 13], "b")
    return Topology((net.conv(x, "picture", 3),), {"a": 1, "b": 4})


def prelu(net: Net) -> Topology:
    x = net.op("PRelu", net.conv("input", "a", 8), net.constant(net.generator.uniform(0, 1, (8, 1, 1))))
    x = net.op("PRelu", net.conv(x, "b", 8), net.constant([0.25]))
    net.kill(net.pick(3, 8), "a")
    net.kill(net.pick(2, 8), "b")
    return Topology(head(net, x), {"a": 3, "b": 2})


def style_transfer(net: Net) -> Topology:
    """Reflected borders keep a constant constant; instance norm turns it into its shift."""
    edge = net.constant([0, 0, 1, 1, 0, 0, 1, 1])
    x = net.op("Pad", "input", edge, mode="reflect")
    x = net.conv(x, "a", 8, pads=[0] * 4)
    dead = net.pick(3, 8)
    scale, shift = net.generator.normal(1, 0.2, 8), net.generator.normal(0, 1, 8)
    x = net.op("InstanceNormalization", x, net.constant(scale), net.constant(shift))
    x = net.conv(net.op("Pad", x, edge, mode="reflect"), "b", 8, pads=[0] * 4)
    net.kill(dead, "a", bias=0.7)
    return Topology((net.conv(net.op("Tanh", x), "picture", 3, (1, 1)),), {"a": 3, "b": 0})


def group_norm(net: Net) -> Topology:
    """The second of four groups is dead as a whole; a single channel cannot go."""
    x = net.conv("input", "a", 8)
    vectors = (net.constant(net.generator.normal(1, 0.2, 8)), net.constant([0.3, -1, 0, 0, 0.1, 0.2, 0.3, 0.4]))
    x = net.op("Relu", net.op("GroupNormalization", x, *vectors, num_groups=4))
    net.kill([2, 3, 5], "a")
    return Topology(head(net, net.conv(x, "b", 6)), {"a": 2, "b": 0}, opset=21)


def group_norm_of_torch(net: Net) -> Topology:
    """Written as Reshape, InstanceNormalization, Reshape: the block of a group goes, and the shapes with it."""
    x = net.op("Reshape", net.conv("input", "a", 8), net.constant([0, 4, -1]), channels=4)
    x = net.op("InstanceNormalization", x, net.constant(np.ones(4)), net.constant(np.zeros(4)))
    x = net.op("Reshape", x, net.constant([0, 8, 8, 8]), channels=8)
    x = net.op("Mul", x, net.constant(net.generator.normal(1, 0.2, (8, 1, 1))))
    net.kill([6, 7, 0], "a")
    return Topology(head(net, net.op("Relu", x)), {"a": 2})


def temporal(net: Net) -> Topology:
    x = net.op("Reshape", "input", net.constant([0, 3, 64]), channels=3)
    x = net.op("Relu", net.conv(x, "a", 8, (3,), pads=[2, 2], dilations=[2]))
    x = net.op("Relu", net.conv(x, "b", 8, (3,), pads=[4, 0], dilations=[2], strides=[2]))
    net.kill(net.pick(3, 8), "a", bias=-1.0)
    net.kill(net.pick(2, 8), "b")
    return Topology(head(net, x), {"a": 3, "b": 2})


def permuted(net: Net) -> Topology:
    order = net.generator.permutation(8)
    x = net.op("Gather", net.block("input", "a", 8), net.constant(order), axis=1)
    x = net.op("Gather", net.block(x, "b", 8), net.constant([0, 2, 2, -1]), axis=1, channels=4)
    net.kill(net.pick(3, 8), "bn_a")
    net.kill([2, 5], "bn_b")  # 1, 3, 4 and 6 are unread
    return Topology(head(net, net.conv(x, "c", 6)), {"a": 3, "b": 6, "c": 0})


def halves(net: Net) -> Topology:
    """Cross-stage partial: one half is worked on, the other passes."""
    x, axis = net.block("input", "a", 8), net.constant([1])
    left = net.op("Slice", x, net.constant([0]), net.constant([4]), axis, channels=4)
    right = net.op("Slice", x, net.constant([4]), net.constant([1 << 62]), axis, channels=4)
    x = net.block(net.concat(left, net.block(right, "b", 4)), "c", 8, (1, 1))
    net.kill([1, 4, 6], "bn_a")
    net.kill([0], "bn_b")
    return Topology(head(net, x), {"a": 3, "b": 1, "c": 0})


def every_other(net: Net) -> Topology:
    """Steps over channels: channel 3 is skipped by all, 0 and 4 are dead, 2 backwards becomes 1."""
    x, axis = net.block("input", "a", 8), net.constant([1])
    even = net.op("Slice", x, net.constant([0]), net.constant([8]), axis, net.constant([2]), channels=4)
    last = net.op("Slice", x, net.constant([7]), net.constant([4]), axis, net.constant([-2]), channels=2)
    net.kill([0, 7], "bn_a")
    return Topology(head(net, net.conv(net.concat(even, last), "b", 6)), {"a": 4, "b": 0})


def ghost(net: Net) -> Topology:
    x = net.block("input", "a", 8, (1, 1))
    x = net.concat(x, net.op("Relu", net.conv(x, "cheap", 8, group=8)))
    dead = net.pick(3, 8)
    net.kill(dead, "bn_a", "cheap")
    return Topology(head(net, net.conv(x, "b", 6, (1, 1))), {"a": 3, "b": 0})


def hourglass(net: Net) -> Topology:
    x = net.block("input", "a", 8)
    inner = net.block(net.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]), "b", 8)
    up = net.op("Resize", inner, "", "", net.constant([1, 8, 8, 8]), mode="linear")
    net.input_shape[0] = 1
    net.kill(net.pick(3, 8), "bn_a", "bn_b")
    return Topology(head(net, net.conv(net.op("Add", x, up), "c", 6)), {"a": 3, "c": 0})


def attention_gate(net: Net) -> Topology:
    """One gate for all channels: it is repeated, and stays."""
    x = net.block("input", "a", 8)
    x = net.op("Mul", x, net.op("Sigmoid", net.conv(x, "gate", 1, (7, 7))))
    net.kill(net.pick(3, 8), "bn_a")
    return Topology(head(net, net.conv(x, "b", 6)), {"a": 3, "gate": 0, "b": 0}, {"gate": "broadcast by"})


def siamese(net: Net) -> Topology:
    """Two towers share their weights."""
    net.more_inputs["second"], net.channels["second"] = ["batch", 3, 8, 8], 3
    one = net.op("Relu", net.conv("input", "a", 8))
    two = net.op("Relu", net.op("Conv", "second", "a.weight", "a.bias", channels=8, pads=[1] * 4))
    net.kill(net.pick(3, 8), "a", bias=-0.5)
    x = net.op("Abs", net.op("Sub", net.op("GlobalMaxPool", one), net.op("GlobalMaxPool", two)))
    return Topology((net.gemm(net.op("Flatten", x), "fc", 8, 5),), {"a": 3})


def two_towers(net: Net) -> Topology:
    net.more_inputs["table"], net.channels["table"] = ["batch", 6], 6
    image = net.op("Flatten", net.op("ReduceMean", net.block("input", "a", 8), net.constant([2, 3])))
    table = net.op("Relu", net.gemm("table", "b", 6, 8))
    net.kill(net.pick(3, 8), "bn_a", bias=0.4)
    net.kill(net.pick(2, 8), "b")
    return Topology((net.gemm(net.concat(image, table), "fc", 16, 5),), {"a": 3, "b": 2})


def channels_last(net: Net) -> Topology:
    """As TensorFlow flattens: every channel owns every eighth column."""
    x = net.op("Transpose", net.block("input", "a", 8), perm=[0, 2, 3, 1])
    x = net.op("Reshape", x, net.constant([-1, 512]), channels=512)
    net.kill(net.pick(3, 8), "bn_a")
    return Topology((net.matmul(x, "fc", 512, 5),), {"a": 3, "fc": 0})


def gated(net: Net) -> Topology:
    """tanh(a)·σ(b): a zero in the first half is enough, its gate is then unread."""
    x = net.conv("input", "a", 16)
    left, right = net.split(x, 8, 8)
    x = net.op("Mul", net.op("Tanh", left), net.op("Sigmoid", right))
    dead = net.pick(3, 8)
    net.kill(dead, "a")
    return Topology(head(net, net.conv(x, "b", 6)), {"a": 6, "b": 0})


def focus(net: Net) -> Topology:
    """Four shifted pictures of half the size, side by side: each channel is there four times."""
    x, axes, ends = net.block("input", "a", 8), net.constant([2, 3]), net.constant([1 << 31, 1 << 31])
    corners = [net.constant([row, column]) for row in (0, 1) for column in (0, 1)]
    x = net.concat(*(net.op("Slice", x, corner, ends, axes, net.constant([2, 2])) for corner in corners))
    net.kill(net.pick(3, 8), "bn_a")
    return Topology(head(net, net.conv(x, "b", 6)), {"a": 3, "b": 0})


def res2net(net: Net) -> Topology:
    one, two, three = net.split(net.block("input", "a", 12), 4, 4, 4)
    two = net.block(two, "b", 4)
    three = net.block(net.op("Add", two, three), "c", 4)
    net.kill([0, 5, 9, 10], "bn_a")
    net.kill([1], "bn_b")
    net.kill([2, 3], "bn_c")
    # the third part is added to the output of `b`, where only channel 1 is dead as well
    x = net.block(net.concat(one, two, three), "d", 8, (1, 1))
    return Topology(head(net, x), {"a": 3, "b": 1, "c": 2})


def dead_chain(net: Net) -> Topology:
    """Channels that only dead filters read are dead, however lively they are."""
    x = net.block(net.block("input", "a", 8), "b", 8)
    dead = net.pick(3, 8)
    live = [channel for channel in range(8) if channel not in dead]
    net.weights["b.weight"][np.ix_(live, [1, 2, 6])] = 0
    net.kill(dead, "bn_b")
    return Topology(head(net, x), {"a": 3, "b": 3})


def shuffled_residual(net: Net) -> Topology:
    """A shuffle inside a residual block: 8 channels in two orders."""
    x = net.block("input", "a", 8)
    x = net.op("Relu", net.op("Add", net.block(shuffle(net, x, 4), "b", 8), net.block(x, "c", 8)))
    net.kill(net.pick(3, 8), "bn_a")
    net.kill(net.pick(2, 8), "bn_b", "bn_c")
    return Topology(head(net, x), {"a": 3, "b": 2})
