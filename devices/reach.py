"""From a card to the way to its board."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from ..records import Card
from .local import LocalTransport
from .reservation import Reserved
from .ssh import SshTransport
from .transport import Transport


def transport_of(card: Card) -> SshTransport | LocalTransport:
    """The transport that a card names."""
    return SshTransport(card) if card.transport == "ssh" else LocalTransport()


def reserved(card: Card, tell: Callable[[str], None], governor: str | None = None) -> AbstractContextManager[Transport]:
    """The way to a device for measuring: to a board when nobody else measures there, which `tell(why)` waits for.

    With a governor, which is what it was when the context is left; this machine is reserved only then.
    """
    transport = transport_of(card)
    if card.transport == "local" and governor is None:
        return nullcontext(transport)
    return Reserved(transport, card.name, governor, tell)
