"""What a board is and how to reach it. A card enters; facts, weather and timed blocks leave.

card.py       the description a person writes: cards/*.toml here and in the user's configuration folder
transport.py  the seam: a process on a board answers requests; what its answers must look like
local.py      the transport to this machine: board.py in a fresh process, killed with us
board.py      the one file that runs on a board; Python 3.8, numpy and onnxruntime only
probe.py      what the board turns out to be, and what changes while one measures
"""
