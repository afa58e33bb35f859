"""From a card to the way to its board."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from ..errors import InputError
from ..records import Card
from .local import LocalTransport
from .qemu import QemuTransport
from .reservation import Reserved
from .ssh import SshTransport
from .transport import Transport


def transport_of(card: Card) -> SshTransport | LocalTransport | QemuTransport:
    """The transport that a card names."""
    if card.transport == "qemu":
        return QemuTransport(card)
    return SshTransport(card) if card.transport == "ssh" else LocalTransport()


def reserved(card: Card, tell: Callable[[str], None], governor: str | None = None) -> AbstractContextManager[Transport]:
    """The way to a device for measuring: to a board when nobody else measures there, which `tell(why)` waits for.

    With a governor, which is what it was when the context is left; this machine is reserved only then. Who measures on
    a board without Python is not known, and an emulated device has no times that others could disturb.
    """
    transport = transport_of(card)
    if card.is_emulated or card.runner is not None:
        if governor is not None:
            raise InputError(f"--governor: nothing can set it on device '{card.name}'; leave it out")
        return nullcontext(transport)
    if card.transport == "local" and governor is None:
        return nullcontext(transport)
    return Reserved(transport, card.name, governor, tell)
