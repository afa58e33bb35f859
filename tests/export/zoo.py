"""A zoo of convolutional topologies with random dead channels, and how many of them each group can lose.

Every function adds a network to an empty `Net` and returns its outputs, the number of channels that must go from the
group of each layer, and words from the reasons of those that stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .nets import Net


@dataclass(frozen=True)
class Topology:
    """Outputs, channels that must go by layer, words that reasons must contain by layer."""

    outputs: tuple[str, ...]
    removed: Mapping[str, int]
    reasons: Mapping[str, str] = field(default_factory=dict)
    opset: int = 18


Build = Callable[[Net], Topology]


def head(net: Net, x: str) -> tuple[str]:
    """Global average pool, flatten, classifier."""
    flat = net.op("Flatten", net.op("GlobalAveragePool", x))
    return (net.gemm(flat, "fc", net.channels[x], 5),)


def swish(net: Net, x: str) -> str:
    return net.op("Mul", x, net.op("Sigmoid", x))


def squeeze_excite(net: Net, x: str, name: str, gate: str) -> str:
    squeezed = net.op("Relu", net.conv(net.op("GlobalAveragePool", x), f"{name}.down", 4, (1, 1)))
    return net.op("Mul", x, net.op(gate, net.conv(squeezed, f"{name}.up", net.channels[x], (1, 1))))


def vgg(net: Net) -> Topology:
    x = net.op("MaxPool", net.block("input", "a", 8), kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Flatten", net.block(x, "b", 12))
    x = net.op("Relu", net.gemm(x, "c", 12 * 16, 10))
    net.kill(net.pick(2, 8), "bn_a")
    net.kill(net.pick(5, 12), "bn_b")
    net.kill(net.pick(3, 10), "c", bias=-1.0)
    return Topology((net.gemm(x, "fc", 10, 5),), {"a": 2, "b": 5, "c": 3, "fc": 0})


def resnet(net: Net) -> Topology:
    stem = net.block("input", "stem", 8)
    inner = net.bn(net.conv(net.block(stem, "one", 12), "two", 8), "bn_two")
    x = net.op("Relu", net.op("Add", stem, inner))
    net.kill(net.pick(3, 8), "bn_stem", "bn_two")
    net.kill(net.pick(4, 12), "bn_one")
    return Topology(head(net, x), {"stem": 3, "one": 4})


def resnet_projection(net: Net) -> Topology:
    stem = net.block("input", "stem", 8)
    inner = net.bn(net.conv(net.block(stem, "one", 12), "two", 16, strides=[2, 2], pads=[1] * 4), "bn_two")
    short = net.bn(net.conv(stem, "short", 16, (1, 1), strides=[2, 2]), "bn_short")
    x = net.op("Relu", net.op("Add", inner, short))
    net.kill(net.pick(2, 8), "bn_stem")
    net.kill(net.pick(6, 16), "bn_two", "bn_short")
    return Topology(head(net, x), {"stem": 2, "two": 6, "one": 0})


def resnet_option_a(net: Net) -> Topology:
    """The shortcut of the CIFAR ResNets: every other pixel, zeros for the new channels on both sides."""
    stem = net.block("input", "stem", 8)
    inner = net.bn(net.conv(stem, "two", 16, strides=[2, 2], pads=[1] * 4), "bn_two")
    ranges = (net.constant([0, 0]), net.constant([1 << 62, 1 << 62]), net.constant([2, 3]), net.constant([2, 2]))
    strided = net.op("Slice", stem, *ranges)
    padded = net.op("Pad", strided, net.constant([0, 4, 0, 0, 0, 4, 0, 0]), channels=16)
    x = net.op("Relu", net.op("Add", inner, padded))
    dead = net.pick(3, 8)
    net.kill(dead, "bn_stem")
    net.kill([4 + channel for channel in dead], "bn_two")
    net.kill([0, 1, 14], "bn_two")
    return Topology(head(net, x), {"stem": 3, "two": 6})


def bottleneck(net: Net) -> Topology:
    stem = net.block("input", "stem", 16)
    inner = net.block(net.block(stem, "one", 8, (1, 1)), "two", 8)
    x = net.op("Relu", net.op("Add", stem, net.bn(net.conv(inner, "three", 16, (1, 1)), "bn_three")))
    net.kill(net.pick(2, 8), "bn_one")
    net.kill(net.pick(3, 8), "bn_two")
    net.kill(net.pick(5, 16), "bn_stem", "bn_three")
    return Topology(head(net, x), {"stem": 5, "one": 2, "two": 3})


def pre_activation(net: Net) -> Topology:
    """A stream whose every reader scales a channel by zero: what writes it is unread, and goes as well."""
    stem, dead = net.conv("input", "stem", 8), net.pick(3, 8)
    x = net.op("Relu", net.bn(stem, "bn_first", dead=dead, beta_of_dead=-1))
    stream = net.op("Add", stem, net.conv(net.block(x, "one", 12), "two", 8))
    x = net.op("Relu", net.bn(stream, "bn_last", dead=dead))
    net.kill(net.pick(4, 12), "bn_one")
    return Topology(head(net, x), {"stem": 3, "one": 4})


def mobilenet_v1(net: Net) -> Topology:
    x = net.block("input", "a", 8)
    x = net.op("Relu", net.bn(net.conv(x, "depth", 8, group=8), "bn_depth"))
    x = net.block(x, "b", 12, (1, 1))
    net.kill(net.pick(3, 8), "bn_a", "bn_depth")
    net.kill(net.pick(2, 12), "bn_b")
    return Topology(head(net, x), {"a": 3, "b": 2})


def mobilenet_v2(net: Net) -> Topology:
    six = (net.constant(0.0), net.constant(6.0))
    stem = net.op("Clip", net.bn(net.conv("input", "stem", 8), "bn_stem"), *six)
    x = net.op("Clip", net.bn(net.conv(stem, "expand", 16, (1, 1)), "bn_expand"), *six)
    x = net.op("Clip", net.bn(net.conv(x, "depth", 16, group=16), "bn_depth"), *six)
    x = net.op("Add", stem, net.bn(net.conv(x, "project", 8, (1, 1)), "bn_project"))
    net.kill(net.pick(5, 16), "bn_expand", "bn_depth")
    net.kill(net.pick(2, 8), "bn_stem", "bn_project")
    return Topology(head(net, x), {"stem": 2, "expand": 5})


def mobilenet_v3(net: Net) -> Topology:
    x = net.op("HardSwish", net.conv("input", "a", 12))
    x = net.op("HardSwish", net.conv(x, "depth", 12, (5, 5), group=12))
    x = net.conv(squeeze_excite(net, x, "se", "HardSigmoid"), "b", 8, (1, 1))
    net.kill(net.pick(4, 12), "a", "depth")
    net.kill(net.pick(1, 4), "se.down", bias=-0.5)
    net.kill(net.pick(3, 8), "b")
    return Topology(head(net, x), {"a": 4, "se.down": 1, "b": 3})


def densenet(net: Net) -> Topology:
    x = net.block("input", "a", 8)
    x = net.concat(x, net.block(x, "b", 4))
    x = net.concat(x, net.block(x, "c", 4))
    x = net.block(x, "transition", 8, (1, 1))
    for layer, count, width in (("a", 3, 8), ("b", 1, 4), ("c", 2, 4), ("transition", 2, 8)):
        net.kill(net.pick(count, width), f"bn_{layer}")
    return Topology(head(net, x), {"a": 3, "b": 1, "c": 2, "transition": 2})


def inception(net: Net) -> Topology:
    stem = net.block("input", "stem", 8)
    pooled = net.op("MaxPool", stem, kernel_shape=[3, 3], pads=[1] * 4)
    branches = [
        net.block(stem, "one", 4, (1, 1)),
        net.block(net.block(stem, "three.in", 6, (1, 1)), "three", 4),
        net.block(net.block(stem, "five.in", 6, (1, 1)), "five", 4, (5, 5)),
        net.block(pooled, "pool", 4, (1, 1)),
    ]
    x = net.block(net.concat(*branches), "last", 8)
    layers = {"stem": 2, "one": 1, "three.in": 2, "three": 1, "five.in": 3, "five": 2, "pool": 1, "last": 0}
    for layer, count in layers.items():
        net.kill(net.pick(count, net.weights[f"{layer}.weight"].shape[0]), f"bn_{layer}")
    return Topology(head(net, x), layers)


def squeezenet(net: Net) -> Topology:
    squeezed = net.op("Relu", net.conv(net.block("input", "stem", 8), "squeeze", 6, (1, 1)))
    left, right = net.conv(squeezed, "left", 8, (1, 1)), net.conv(squeezed, "right", 8)
    x = net.op("Relu", net.concat(left, right))
    net.kill(net.pick(2, 6), "squeeze", bias=-1.0)
    net.kill(net.pick(3, 8), "left", bias=-0.1)
    net.kill(net.pick(4, 8), "right")
    x = net.op("GlobalAveragePool", net.conv(x, "classes", 5, (1, 1)))
    return Topology((net.op("Flatten", x),), {"squeeze": 2, "left": 3, "right": 4, "stem": 0})


def shuffle(net: Net, x: str, groups: int, size: int = 8) -> str:
    channels = net.channels[x]
    x = net.op("Reshape", x, net.constant([-1, groups, channels // groups, size, size]), channels=channels)
    x = net.op("Transpose", x, perm=[0, 2, 1, 3, 4])
    return net.op("Reshape", x, net.constant([-1, channels, size, size]))


def shufflenet_v1(net: Net) -> Topology:
    """Two groups lose equally many; the shuffle carries each channel to its place."""
    x = net.op("Relu", net.conv(net.block("input", "stem", 8), "one", 12, (1, 1), group=2))
    x = net.op("Relu", net.conv(shuffle(net, x, 2), "depth", 12, group=12))
    x = net.conv(x, "two", 8, (1, 1), group=2)
    dead = [3 * part + net.pick(1, 3)[0] for part in range(4)]  # two of each group, before the shuffle and after
    net.kill(dead, "one")
    net.kill([channel % 6 * 2 + channel // 6 for channel in dead], "depth")
    return Topology(head(net, x), {"one": 4, "stem": 0, "two": 0})


def shufflenet_v2(net: Net) -> Topology:
    stem = net.block("input", "stem", 8)
    x = net.split(stem, 4, 4)
    right = net.block(net.conv(net.block(x[1], "one", 4, (1, 1)), "depth", 4, group=4), "two", 4, (1, 1))
    x = net.block(shuffle(net, net.concat(x[0], right), 2), "last", 8, (1, 1))
    net.kill([1, 6], "bn_stem")
    net.kill([2], "bn_one", "depth")
    net.kill([3], "bn_two")
    return Topology(head(net, x), {"stem": 2, "one": 1, "two": 1, "last": 0})


def efficientnet(net: Net) -> Topology:
    stem = swish(net, net.bn(net.conv("input", "stem", 8), "bn_stem"))
    x = swish(net, net.bn(net.conv(stem, "expand", 16, (1, 1)), "bn_expand"))
    x = swish(net, net.bn(net.conv(x, "depth", 16, group=16), "bn_depth"))
    x = net.conv(squeeze_excite(net, x, "se", "Sigmoid"), "project", 8, (1, 1))
    x = net.op("Add", stem, net.bn(x, "bn_project"))
    net.kill(net.pick(6, 16), "bn_expand", "bn_depth")
    net.kill(net.pick(2, 8), "bn_stem", "bn_project")
    return Topology(head(net, x), {"stem": 2, "expand": 6, "se.down": 0})
