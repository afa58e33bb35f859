"""Topologies of which nothing may be removed, although channels are dead, and the words that say why."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from .nets import Net
from .zoo import Topology, head


def _dead(net: Net) -> str:
    """Eight channels of which two are zero."""
    x = net.block("input", "a", 8)
    net.kill(net.pick(2, 8), "bn_a")
    return x


def _declined(net: Net, x: str, words: str) -> Topology:
    return Topology(head(net, net.conv(x, "b", 6)), {"a": 0, "b": 0, "fc": 0}, {"a": words})


def softmax_over_channels(net: Net) -> Topology:
    return _declined(net, net.op("Softmax", _dead(net), axis=1), "(Softmax) ties as a whole")


def layer_norm_over_channels(net: Net) -> Topology:
    vectors = net.constant(np.ones((8, 8, 8))), net.constant(np.zeros((8, 8, 8)))
    x = net.op("LayerNormalization", _dead(net), *vectors, axis=1)
    return _declined(net, x, "(LayerNormalization) ties as a whole")


def local_response(net: Net) -> Topology:
    return _declined(net, net.op("LRN", _dead(net), size=3), "(LRN) ties as a whole")


def cumulative_sum(net: Net) -> Topology:
    return _declined(net, net.op("CumSum", _dead(net), net.constant(1)), "(CumSum) is not understood")


def einsum(net: Net) -> Topology:
    x = net.op("Einsum", _dead(net), equation="nchw->nchw")
    return _declined(net, x, "(Einsum) is not understood")


def channel_attention(net: Net) -> Topology:
    """Mean over channels: how many there are would matter."""
    x = _dead(net)
    gate = net.op("Sigmoid", net.op("ReduceMean", x, net.constant([1])))
    return _declined(net, net.op("Mul", x, gate), "summed over by")


def sorted_channels(net: Net) -> Topology:
    x = _dead(net)
    values, indices = f"{x}_values", f"{x}_indices"
    net.nodes.append(helper.make_node("TopK", [x, net.constant([8])], [values, indices], axis=1))
    net.channels[values] = 8
    return _declined(net, values, "(TopK) is not understood")


def asked_size(net: Net) -> Topology:
    """The count of channels enters as a number."""
    x = _dead(net)
    count = net.op("Gather", net.op("Shape", x), net.constant(1))
    return _declined(net, net.op("Div", x, net.op("Cast", count, to=TensorProto.FLOAT)), "its size is asked by")


def computed_weight(net: Net) -> Topology:
    """A convolution whose kernel is made from the input."""
    scale = net.op("ReduceMean", "input", net.constant([0, 1, 2, 3]), channels=1)
    kernel = net.op("Mul", net.constant(net.generator.normal(0, 0.3, (6, 8, 1, 1))), scale, channels=6)
    return _declined(net, net.op("Conv", _dead(net), kernel, channels=6), "(Conv) is not understood")


def border(net: Net) -> Topology:
    """The constant 0.5 in front of zeros: nobody may drop it, nobody may fold it."""
    x = net.op("Relu", net.bn(net.conv("input", "a", 8), "bn_a"))
    net.kill(net.pick(2, 8), "bn_a", bias=0.5)
    return _declined(net, x, "a constant 0.5 in front of the zero padding of 'b'")


def graph_output(net: Net) -> Topology:
    x = _dead(net)
    return Topology((*head(net, net.conv(x, "b", 6)), x), {"a": 0, "b": 0}, {"a": "graph output"})


def uneven_groups(net: Net) -> Topology:
    x = net.block("input", "a", 8)
    net.kill([1, 2], "bn_a")
    return Topology(head(net, net.conv(x, "b", 6, group=2)), {"a": 0}, {"a": "groups must stay equally wide"})


def scores(net: Net) -> Topology:
    """Two activations multiplied: the inner axis is summed over."""
    x = net.op("Reshape", _dead(net), net.constant([0, 8, 64]))
    gram = net.op("MatMul", net.op("Transpose", x, perm=[0, 2, 1]), x, channels=64)
    return Topology((net.op("ReduceMean", gram, net.constant([1])),), {"a": 0}, {"a": "multiplied by each other"})


def branch(net: Net) -> Topology:
    """Read inside both branches of an If."""
    x = _dead(net)
    bodies: dict[str, Any] = {
        key: helper.make_graph(
            [helper.make_node(kind, [x], [f"{key}_out"])],
            key,
            [],
            [helper.make_tensor_value_info(f"{key}_out", TensorProto.FLOAT, ["batch", 8, 8, 8])],
        )
        for key, kind in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    positive = net.op("Greater", net.op("ReduceSum", "input", keepdims=0), net.constant(0.0))
    return _declined(net, net.op("If", positive, channels=8, **bodies), "subgraph")


def loop(net: Net) -> Topology:
    """Carried around a Loop."""
    x, tensor = _dead(net), helper.make_tensor_value_info
    shape = ["batch", 8, 8, 8]
    body = helper.make_graph(
        [helper.make_node("Tanh", ["carried"], ["next"]), helper.make_node("Identity", ["go"], ["again"])],
        "body",
        [
            tensor("step", TensorProto.INT64, []),
            tensor("go", TensorProto.BOOL, []),
            tensor("carried", TensorProto.FLOAT, shape),
        ],
        [tensor("again", TensorProto.BOOL, []), tensor("next", TensorProto.FLOAT, shape)],
    )
    go = net.op("Greater", net.constant(1.0), net.constant(0.0))
    return _declined(net, net.op("Loop", net.constant(2), go, x, channels=8, body=body), "(Loop) is not understood")


def function_body(net: Net) -> Topology:
    """A function of the model's own domain is a boundary."""
    x = net.op("Twice", _dead(net), domain="local")
    return _declined(net, x, "(Twice) is not understood")


def twice():
    """y = x + x, as a model-local function."""
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    return helper.make_function("local", "Twice", ["x"], ["y"], nodes, [helper.make_opsetid("", 18)])
