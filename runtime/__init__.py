"""Measure what models really cost on a device. ONNX files enter; bench.json leaves, and a report from it.

measure.py   launch pairs of processes and interleave their blocks: raw samples, and all that was true then
turns.py     options, and who is timed when and for how long
stats.py     pure functions on samples: the ratio of a pair, its interval over pairs, quantiles
kept.py      the pairs that are done, on the disk until the record is whole
serving.py   a model on its way to a board
load.py      a model at a rate of frames, and without a pause
agreement.py outputs on an emulated device against those here
counts.py    instructions on an emulated device, and bounds on them
latency.py   the latency table: opaque models against one another, remembered
operators.py where the time goes, by layer of the plan
sweep.py     settings to measure one after the other
diagnose.py  cautions: what looks wrong in a measurement, each with a remedy
gate.py      judge a claim such as "compact <= 0.8 * dense" by the whole interval
baseline.py  an old bench against a new one: has a model become slower since?
summary.py   a verdict as Markdown, for a CI's page
costs.py     count multiply-accumulates and parameters of an ONNX graph
inputs.py    arrays for any model's inputs, seeded or the user's own
onnxfile.py  read an ONNX file; its external data stays inside its folder
report/      one assembled record and its small writers
"""
