"""aarch64 code under QEMU for tests, where QEMU and the userland are; skipped by name where they are not."""

from __future__ import annotations

import pytest

from rankfold.devices import card
from rankfold.devices.counting import plugin
from rankfold.devices.qemu import QemuTransport
from rankfold.errors import DeviceError


def emulated(device: str) -> QemuTransport:
    """The transport of a `qemu-…` device that is ready to be used."""
    try:
        transport = QemuTransport(card.find(device))
        transport.python()
    except DeviceError as error:
        pytest.skip(f"on aarch64: {error}")
    return transport


def counter(device: str) -> QemuTransport:
    """The same, where instructions can be counted too."""
    transport = emulated(device)
    try:
        plugin()
    except DeviceError as error:
        pytest.skip(f"counting on aarch64: {error}")
    return transport
