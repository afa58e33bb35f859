"""peers: rankfold side by side with what its users would pick instead. `python -m rankfold.benchmarks.peers --help`.

tools.py      what a tool is: the settings of its grid, and how each makes a network smaller
own.py        the tools that need nothing installed, rankfold among them
registry.py   third parties' tools, each file of adapters a line
subjects.py   the networks that all are given, their data and splits; mobilenet.py has one of them
points.py     a network, a setting, how long it learns: a row, a folder, a file
making.py     from a point to its row, in a process of its own
finalists.py  who learns on and who is chosen: the rules
campaign.py   all stages for one network
timing.py     a short contest, launch pairs, the bare loop
toolchain.py  what the ways to a measured file cost
shown.py      tables, the answer in each class, the picture; words.py has how rows are called
"""
