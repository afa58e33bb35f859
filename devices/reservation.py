"""A board for one command alone: a process there, keeper.py, has its lock and sets its governor as long as it lives."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field

from ..errors import DeviceError
from ..records import Part
from .child import ChildProcess
from .local import LocalTransport
from .ssh import SshTransport
from .transport import Text, checked

KEEPER = Path(__file__).with_name("keeper.py")
_ANSWER_S = 60.0
_LOOK_EVERY_S = 2.0  # whoever measures there is disturbed for less than a millisecond
_WAIT_S = 3600.0


class Holder(Part):
    """Who has a board, None for ourselves; for how long, and the process there that holds it."""

    who: Text | None
    held_s: Annotated[float, Field(ge=0, lt=1e9)]
    pid: int


class Reserved:
    """The way to a board that nobody else measures on until the context is left.

    Somebody who does is waited for: `tell(why)` now and then, DeviceError after an hour. A keeper ends with its
    connection, and what it held is free; the next launch takes it anew.
    """

    def __init__(
        self, transport: SshTransport | LocalTransport, name: str, governor: str | None, tell: Callable[[str], None]
    ) -> None:
        self._transport, self._name, self._governor, self._tell = transport, name, governor, tell
        self._token = secrets.token_hex(8)
        self._keeper: ChildProcess | None = None
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self._keep()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def launch(self) -> ChildProcess:
        """Start board.py in a fresh process there, when the board is ours."""
        self._keep()
        return self._transport.launch()

    def place(self, path: Path) -> str:
        """Where a process there finds this file, as it is now."""
        return self._transport.place(path)

    def _keep(self) -> None:
        if self._keeper is not None and self._keeper.is_alive:
            return
        self._held.close()
        until = time.monotonic() + _WAIT_S
        with ExitStack() as held:
            keeper = held.enter_context(self._transport.start(KEEPER, self._token))
            while (holder := self._asked(keeper)).who is not None:
                since = datetime.now() - timedelta(seconds=holder.held_s)
                busy = f"{holder.who} measures on '{self._name}' since {since:%a %H:%M} (process {holder.pid} there)"
                if time.monotonic() > until:
                    raise DeviceError(f"{busy}, for an hour we have waited; ask them, or end that process")
                self._tell(f"waiting: {busy}")
                time.sleep(_LOOK_EVERY_S)
            self._held, self._keeper = held.pop_all(), keeper

    def _asked(self, keeper: ChildProcess) -> Holder:
        return checked(Holder, keeper.ask({"who": _me(), "governor": self._governor}, _ANSWER_S))


def _me() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # an account without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
