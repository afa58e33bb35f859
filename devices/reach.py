"""From a card to the way to its board."""

from __future__ import annotations

from ..records import Card
from . import card as cards
from .local import LocalTransport
from .qemu import QemuTransport
from .ssh import SshTransport
from .transport import Transport


def transport_of(card: Card) -> Transport:
    """The transport that a card names."""
    if card.transport == "qemu":
        return QemuTransport(card)
    return SshTransport(card) if card.transport == "ssh" else LocalTransport()


def transport_to(name: str) -> Transport:
    """The transport of the device that is called so."""
    return transport_of(cards.find(name))
