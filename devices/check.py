"""Is a board fit to measure on? One finding an item, each that is not fine with its remedy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..errors import DeviceError, RankfoldError
from ..records import Card, Facts, Weather
from . import probe, wheels
from .reach import transport_of
from .ssh import SshTransport
from .transport import BoardProcess, Outfit, checked

OLDEST_PYTHON = (3, 8)
_LIMIT_S = 60.0
_CLOCK_S = 60.0  # off by more than this, and dates in records and on files mislead
_MEMORY_BYTES, _DISK_BYTES = 200 << 20, 500 << 20  # a ResNet-50 in the runtime; models and a virtual environment
_WARM_C = 70.0  # a Raspberry Pi slows down at 80 °C, others sooner


@dataclass(frozen=True)
class Finding:
    """One thing about a board. A board with a failed one cannot be measured on."""

    item: str
    state: Literal["ok", "warning", "failed"]
    found: str
    remedy: str = ""


def check(card: Card) -> Iterator[Finding]:
    """What there is to say of a board, as it is found out; what fails early ends it."""
    try:
        transport = transport_of(card)
        if isinstance(transport, SshTransport) and card.runner is None:
            began = time.monotonic()
            version = transport.python_version()
            yield Finding("connection", "ok", f"a command takes {time.monotonic() - began:.2f} s")
            if probe.numbers(version) < OLDEST_PYTHON:
                yield Finding(
                    "python", "failed", version[:60], "install Python 3.8 or newer there, name it in the card"
                )
                return
        with transport.launch() as process:
            found = outfit(process, card)
            off_s = abs(found.time_s - time.time())
            yield from _around(card, found, off_s, probe.weather(process))
            installed = list(_installed(card, found))
            yield from installed
            if all(one.state == "ok" for one in installed):
                yield from _runs(card, process)
    except RankfoldError as error:
        yield _failed("connection", error)


def outfit(process: BoardProcess, card: Card) -> Outfit:
    """What is installed there, and free where the card's files go."""
    folder = card.workdir if card.transport == "ssh" else "."
    return checked(Outfit, process.ask({"command": "outfit", "folder": folder}, _LIMIT_S))


def _installed(card: Card, found: Outfit) -> Iterator[Finding]:
    if card.runner is None:
        yield Finding("python", "ok", f"{found.python_version}, {found.libc or 'an unknown C library'}")
    missing = [name for name, version in found.versions.items() if version is None]
    for name, version in found.versions.items():
        setup = f"rankfold devices setup {card.name}"
        if version is None:
            yield Finding(name, "failed", "not installed", setup)
        elif name == "onnxruntime" and probe.numbers(version) < probe.OLDEST_RUNTIME:
            yield Finding(name, "failed", f"{version}, older than 1.16", setup)
        else:
            yield Finding(name, "ok", version)
    if missing:
        why = wheels.missing(found)
        remedy = "install another Python there, or build onnxruntime for it"
        yield Finding("wheels", "failed", why, remedy) if why else Finding("wheels", "ok", "there are some for it")


def _around(card: Card, found: Outfit, off_s: float, weather: Weather) -> Iterator[Finding]:
    """Memory, disk, clock, and what decides how steady times are."""
    free = weather.memory_available_bytes
    if free is not None:
        yield _judged("memory", free >= _MEMORY_BYTES, f"{free / 1e6:.0f} MB available", "stop other services there")
    remedy = f"remove what is in {card.workdir}/files there, or name another workdir in the card"
    yield _judged("disk", found.free_bytes >= _DISK_BYTES, f"{found.free_bytes / 1e6:.0f} MB free", remedy)
    yield _judged("clock", off_s < _CLOCK_S, f"{off_s:.0f} s off", "sudo timedatectl set-ntp true")
    governors = sorted({core.governor for core in weather.cores if core.governor})
    if governors:
        remedy = "bench --governor performance, or until the next boot: sudo cpupower frequency-set -g performance"
        yield _judged("governor", governors == ["performance"], ", ".join(governors), remedy)
    if weather.temperatures_c:
        hottest = max(weather.temperatures_c.values())
        yield _judged("temperature", hottest < _WARM_C, f"{hottest:.0f} °C", "cool it, or add a fan")
    if weather.throttled is not None:
        never = not weather.throttled.rpartition(" ")[2].strip("0x")
        remedy = "it has slowed down since it was booted: see to its power supply and fan, boot it again"
        yield _judged("throttling", never, weather.throttled, remedy)


def _judged(item: str, is_fine: bool, found: str, remedy: str) -> Finding:
    return Finding(item, "ok", found) if is_fine else Finding(item, "warning", found, remedy)


def _failed(item: str, error: RankfoldError) -> Finding:
    """An error's text ends with its remedy."""
    what, _, remedy = str(error).partition("; ")
    return Finding(item, "failed", what, remedy)


def _runs(card: Card, process: BoardProcess) -> Iterator[Finding]:
    """The runtime at work on the smallest model."""
    facts: Facts = probe.facts(process)
    yield Finding("providers", "ok", ", ".join(facts.providers))
    try:
        probe.check_card(card, facts)
    except DeviceError as error:
        yield _failed("processor", error)
        return
    model = f"{facts.cpu_model or 'unknown'}, {facts.architecture}, {len(facts.affinity)} cores, tile {facts.tile}"
    yield Finding("processor", "ok", model)
