"""One graph pass a file, in place on an onnx_ir model; what a pass returns says what it did.

canonicalize     constants become initialisers, flattening reshapes Flatten nodes, layers get names
gather_shuffles  a channel shuffle becomes a Gather, for canonicalize                             exact
fold_constants   what depends on no input, computed once                                          exact
fold_batchnorm   BatchNormalization into the layer before it                                      exact
fold_channels    dead channels out of every layer they touch                                      exact
pad_channels     channels up to the tile, with zeros                                               exact
factorize        the layers of a plan become two convolutions each                                lossy
rewrites         what the runtime may run faster written another way                              exact
bypass           nodes that only move numbers, out                                    exact where it says so
flush_denormals  weights too small for the fast path become zero                                  exact
simplify         onnxsim, its result untouched by trust: parity is checked outside
Every pass is idempotent. Enters: a model with inferred shapes. Leaves: the same, shapes fresh.
"""
