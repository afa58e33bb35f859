"""What a forked process of children.py runs: `rankfold WORDS` in a folder, with its output in two files."""

from __future__ import annotations

import os
import sys

from rankfold.cli import main

folder, *said, words = globals()["GIVEN"]
os.chdir(folder)
for stream, path in zip((1, 2), said, strict=True):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
sys.argv = ["rankfold", *words]
main()
