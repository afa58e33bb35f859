"""Times of networks as static int8 writes them, before any range is known: what a plan for int8 is chosen by.

How long a quantised network takes does not depend on its ranges. So every model that a search times, a layer between
its neighbours or a whole network, is quantised with the same range for every value, and timed so.
"""

from __future__ import annotations

import numpy as np
import onnx

from ..runtime.latency import Stopwatch
from .quantize import LAYERS, Int8, with_ranges

_RANGE = np.float32(-1.0), np.float32(1.0)


def int8_watch(watch: Stopwatch, int8: Int8) -> Stopwatch:
    """A stopwatch that times all models in int8; the table keeps them apart from those in float."""
    bits = 7 if int8.reduce_range else 8
    return watch.writing(f"int8, weights of {bits} bits", lambda model: in_int8(model, int8))


def in_int8(model: bytes, int8: Int8) -> bytes:
    """A float model with its layers in int8 but those of `int8.keep`, fit to be timed alone; one that has no layers as
    it is.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import TensorsData

    proto = _stored(onnx.load_from_string(model))
    if not any(node.op_type in LAYERS and node.name not in int8.keep for node in proto.graph.node):
        return model
    names = [one.name for one in proto.graph.input] + [name for node in proto.graph.node for name in node.output]
    ranges = TensorsData(CalibrationMethod.MinMax, dict.fromkeys(names, _RANGE))
    return with_ranges(proto, ranges, int8, int8.keep).SerializeToString()


def _stored(proto: onnx.ModelProto) -> onnx.ModelProto:
    """With the arrays that the runtime would fill stored: the tool quantises weights that it can see."""
    known = {one.name: one for one in proto.graph.initializer}
    for node in [node for node in proto.graph.node if node.op_type == "ConstantOfShape" and node.input[0] in known]:
        shape = onnx.numpy_helper.to_array(known[node.input[0]])
        number = onnx.numpy_helper.to_array(node.attribute[0].t)[0]
        stored = onnx.numpy_helper.from_array(np.full(shape, number), node.output[0])
        proto.graph.initializer.append(stored)
        proto.graph.node.remove(node)
    return proto
