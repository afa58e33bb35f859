"""benchmarks: rankfold against its peers and itself. Each comparison is a TOML file; one driver runs them all.

compare.py   train every variant equally long, export, score, measure together, report, check the claim
networks.py  a comparison's spec, and the networks that follow from it
training.py  the trainings, several at a time, each in its own process
rows.py      one line of results a measured network
curves.py    accuracy against measured latency over seeds: each network against the curve of narrower dense ones
ablation.py  what each part of the training is worth: arms.py has the networks, ablated.py says what the rows say
choosing.py  plans by measured time: questions.py and rivals.py ask, answers.py keeps what was answered,
             subject.py and shapes.py have the networks, placing.py brings methods to an equal drop
counted.py   do instructions on an emulated board rank convolutions as time here does
rounding.py  what widths off the tile cost a MobileNetV2: a peer's file, ours, and the peer's cured
*.toml       the comparisons: demo (built-in glyphs), chars74k
"""
