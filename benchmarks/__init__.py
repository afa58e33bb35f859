"""benchmarks: rankfold against its peers and itself. Each comparison is a TOML file; one driver runs them all.

compare.py  train every variant equally long, export, score, measure together, report, check the claim
curves.py   accuracy against measured latency over seeds: each network against the curve of narrower dense ones
*.toml      the comparisons: demo (built-in glyphs), chars74k
"""
