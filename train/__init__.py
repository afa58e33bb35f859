"""train: shrink a network while it learns. Enters: a recipe and data. Leaves: a checkpoint and train.json.

regularizer.py  CompressionAware, for a user's model or ours: when proximal steps are taken, and how strongly
shrinking.py    what one of them does to the weights
strength.py     how strong the penalties are now, in each layer
steering.py     the strength that leaves a network on its way to a target
exported.py     what a network would be if it were exported now: shapes, ranks, MACs, weights, time
guard.py        goes back to the last good state when a network collapses or diverges
processes.py    several processes that train one network: who decomposes what, and a lost one
proximal.py     the proximal operators, free functions on tensors
layers.py       the layers of a model: the kernel with its BatchNorm folded in, and the way back
tracing.py      which BatchNorm follows a layer, and which layer feeds it
prescribed.py   the regularizer and the guard that a recipe prescribes
trainer.py      the loop, to be read from top to bottom
checkpoint.py   atomic save, exact resume
recipe.py       recipes: TOML, checked, with --set overrides
groups.py       which filters are a group, and the step on all groups of a make-up at once
planned.py      the start of `train --plan`: small network, dense network and plan, from files that belong together
distill.py      the loss of learning from the dense network
compact.py      a small ONNX file back into its module, BatchNorm kept, for fine-tuning
tune.py         the small graph learns from the original, without labels
onnx_module.py  an ONNX graph as a torch module; onnx_operators/: a function an operator
models/ data/ recipes/
"""
