from __future__ import annotations

import pytest

from ..servers import KINDS, start


@pytest.fixture(scope="module", params=KINDS)
def board(request, tmp_path_factory):
    """A board behind OpenSSH's server, then one behind dropbear, which has no sftp."""
    yield from start(request.param, tmp_path_factory.mktemp(request.param))
