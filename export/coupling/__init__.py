"""Which channels live and die together: a walk over the graph and one small function per operator.

Every index along an axis of a value (activation or constant) is an element of a union-find. An operator ties
elements that can only be removed together (a filter, its bias, the output channel, the next layer's input slice),
and notes where channels are read by a sum over them (`Read`): only there is anything lost. What the walk does not
understand it freezes, with the node and the reason.

classes.py      elements, ties, frozen classes                      arrays of elements → classes
walk.py         the table of rules, boundaries                      graph → Coupling
multiply.py     convolutions, Gemm and MatMul, BatchNormalization
elementwise.py  broadcasting, pooling, resizing: each channel for itself
moves.py        Concat, Split, Slice, Pad, Gather, Transpose: channels change their places
reshapes.py     Reshape and its kin: channels own blocks
mixing.py       norms, softmax and reductions: an axis lives as a whole
"""

from .classes import CHANNEL_AXIS, Coupling, Ids, Kept, Mask, Read
from .walk import couple

__all__ = ["CHANNEL_AXIS", "Coupling", "Ids", "Kept", "Mask", "Read", "couple"]
