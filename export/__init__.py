"""Choose the small graph and write it: onnx, onnx_ir, numpy. No torch but in from_torch.py.

forms.py       the factorisation forms: einops pattern, factor shapes, MACs      kernel ↔ matrix, factors
decompose.py   singular values, truncated SVD, ranks                             kernel → Factors
graphs.py      ONNX files in and out, questions asked of a graph                 path → model → bytes
layers.py      every Conv and Gemm, its kernel, geometry and name                model → layers
coupling/      which channels live and die together                              graph → union-find
constants.py   which channels carry a constant                                   graph → constants by value
grid.py        ranks that are faster than dense, and what a layer can save        latency table → ranks, strengths
choose.py      ranks by energy or for a number of parameters                     model → Plan
passes/        one graph pass a file                                             model → model, in place
reference.py   a graph in float64                                                model, inputs → outputs
sessions.py    ONNX Runtime sessions, for outputs and never for times            bytes → session
guard.py       work on a stranger's file in a child, within bounds               work → text, or one line
footprint.py   memory of a graph's values                                        graph, shapes → bytes
opsets.py      what older runtimes read                                          model, release → model
aware.py       decompositions that keep a layer's outputs                        kernel, Moments → Factors
walk.py        a network run once through calibration data                       model, Samples → values on the way
moments.py     what a layer sees and puts out                                    Walk → Moments, one layer at a time
damage.py      candidates of a layer and what they do to the outputs             layer, Walk → Candidates
frontier.py    one candidate a layer, from dense to the least MACs or bytes       Candidates → steps
solve.py       one option a layer and one width a group, exactly                 numbers → choice
chains.py      factors that equal one dense layer, whoever made them            model → chains, dense again or cut
candidates.py  a layer in any form between its neighbours, to be timed           layer → small models
instructions.py  every layer alone, counted on an emulated device                ONNX, counter → LayerCounts
timing.py      what layers and plans take on a device                            latency table → ratios, forecast
widths.py      how narrow channels may be, and what that damages                 Channels → widths
budget.py      least damage in the time there is, held against dense in place    candidates, device → choice
prune.py       whole channels that their readers miss least                      model, Samples → model
wish.py        what is wanted, and a decision and a reason for every layer       model, limits → Plan
compress.py    all of these in order                                             ONNX → ONNX, Plan, Parity
ranges.py      ranges of activations by ONNX Runtime's calibrators               ONNX, Samples → ranges
int8_layers.py  a layer as int8 between its neighbours, and which had better stay float  latency table → layers
precision.py   which layers stay float, by time and by damage                    int8 network, device → layers
quantize.py    int8 by ONNX Runtime's tool, after folding                        ONNX, data → ONNX, Parity
package.py     the folder a firmware engineer takes; templates/ is what is put in  ONNX → folder
reporting.py   how long work says how far it is
parity.py      outputs against the float64 truth                                 two models → ParityCheck
shrink.py      all of it in order                                                dense.onnx → compact.onnx, Plan, Parity
fold.py        any graph, exactly                                                ONNX → ONNX, Plan, Parity
describe.py    what is in a file, for a person                                   ONNX → layers, ranks, groups, misses
fastpaths.py   nodes that miss the runtime's fast kernels                        graph, device → misses
calibration.py arrays and images for calibration and metrics                     npz, folder → Samples
metric.py      by labels, by the original, or by a command                       model, Samples → ModelScore
evaluate.py    top-1 accuracy with its interval                                  model, data → Score
from_torch.py  a module as an ONNX file (needs torch)                            module → dense.onnx, checks

forms.py and decompose.py import numpy and einops only, so that training can share them.
"""
