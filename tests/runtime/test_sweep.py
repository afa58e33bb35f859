"""Settings of a sweep: every combination, by name, checked before anything is timed."""

from __future__ import annotations

import pytest

from rankfold.errors import InputError
from rankfold.runtime.sweep import SPINNING, settings
from rankfold.runtime.turns import Options

from .conftest import FACTS

BIG_LITTLE = FACTS.model_copy(update={"clusters": [[0, 1], [2, 3]]})


def test_every_combination_in_order():
    found = settings(["threads=1,2", "spinning=on,off"], Options(session_config={"a": "b"}), FACTS)
    assert [name for name, _ in found] == [
        "threads-1-spinning-on",
        "threads-1-spinning-off",
        "threads-2-spinning-on",
        "threads-2-spinning-off",
    ]
    assert [(o.threads, dict(o.session_config)) for _, o in found] == [
        (threads, {"a": "b", SPINNING: spinning}) for threads in (1, 2) for spinning in "10"
    ]


def test_masks_and_clusters():
    found = settings(["cores=0,2+3"], Options(), FACTS)
    assert [(name, options.cores) for name, options in found] == [("cores-0", (0,)), ("cores-2+3", (2, 3))]
    found = settings(["cores=clusters"], Options(), BIG_LITTLE)
    assert [(name, options.cores) for name, options in found] == [("cores-0+1", (0, 1)), ("cores-2+3", (2, 3))]
    assert [options.cores for _, options in settings(["cores=clusters"], Options(), FACTS)] == [(0, 1, 2, 3)]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["speed=1"], r"--sweep 'speed=1': expected threads=1,2; cores=0,1,0\+1 or cores=clusters; spinning=on,off"),
        (["threads=one"], "--sweep 'threads=one'"),
        (["threads"], "--sweep 'threads'"),
        (["spinning=yes"], "--sweep 'spinning=yes'"),
        (["cores=0-1"], "--sweep 'cores=0-1'"),
        (["threads=1", "threads=2"], "--sweep threads is given twice"),
        (["threads=1,0"], "threads is 0; use 1 or more"),
        (["threads=1,1"], "--sweep 'threads=1,1' names a value twice"),
        (["threads=1,8"], "8 threads asked, 4 cores available"),
        (["threads=2", "cores=0"], r"2 threads do not fit on cores \[0\]"),
        (["cores=0,9"], r"cores \[9\] are not available"),
    ],
)
def test_what_is_no_setting_is_refused_beforehand(texts, says):
    with pytest.raises(InputError, match=says):
        settings(texts, Options(), FACTS)
