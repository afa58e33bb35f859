"""peers: rankfold side by side with what its users would pick instead. `python -m rankfold.benchmarks.peers --help`.

tools.py   what a tool is: the settings of its grid, and how each makes a network smaller
"""
