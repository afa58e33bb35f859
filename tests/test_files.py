"""Files from several threads at once, as when several boards are measured."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

from rankfold import files

CALLS = 10_000  # without a lock one in some thousand finds another's mask


def test_threads_leave_the_mask_as_it_is():
    before, interval = os.umask(0o027), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            found = set(threads.map(lambda _: files._umask(), range(CALLS)))
    finally:
        sys.setswitchinterval(interval)
        after = os.umask(before)
    assert (found, after) == ({0o027}, 0o027)
