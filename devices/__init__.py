"""What a board is and how to reach it. A card enters; facts, weather and timed blocks leave.

card.py       the description a person writes: cards/*.toml here and in the user's configuration folder
reach.py      card → transport
transport.py  the seam: files are placed on a board, a process there answers requests; what its answers must look like
local.py      the transport to this machine: board.py in a fresh process, killed with us
ssh.py        the transport to a board: files by their content, board.py behind the system's ssh
qemu.py       the transport to an emulated board: board.py on aarch64 code under QEMU
emulated.py   a process on such a board, or on one over ssh: for outputs, never for times
userland.py   what that runs in: Debian's Python and wheels for aarch64, unpacked into the user's cache
counting.py   instructions of a run there, by QEMU's plugin count.c
child.py      a child process that answers JSON lines, which all start
reservation.py  a board for one command alone; keeper.py is what runs there for it, Python 3.8 only
check.py      card → findings: is a board fit to measure on?
setup.py      card → numpy and onnxruntime there; wheels.py puts them together here
board.py      what runs on a board; Python 3.8, numpy and onnxruntime only
probe.py      what the board turns out to be, and what changes while one measures
"""
