"""What a board turns out to be (facts) and what changes while one measures (weather)."""

from __future__ import annotations

import base64
from typing import Literal

from ..errors import DeviceError
from ..records import Card, Facts, Weather
from .transport import BoardProcess, checked

# A 1×1 convolution of 16 channels in ONNX (opset 13): the smallest model that the runtime rewrites into its
# blocked layout wherever it has kernels for it. Built again and compared in tests/devices/test_probe.py.
TILE_MODEL = (
    b'\x08\x08:\x94\x01\n2\n\x01s\x12\x01w"\x0fConstantOfShape*\x19\n\x05value*\r\x08\x01\x10\x01"\x04\x00\x00'
    b'\x00?B\x01v\xa0\x01\x04\n\x0f\n\x01x\n\x01w\x12\x01y"\x04Conv\x12\x04tile*\r\x08\x04\x10\x07:\x04\x10'
    b"\x10\x01\x01B\x01sZ\x1b\n\x01x\x12\x16\n\x14\x08\x01\x12\x10\n\x02\x08\x01\n\x02\x08\x10\n\x02\x08\x08\n"
    b"\x02\x08\x08b\x1b\n\x01y\x12\x16\n\x14\x08\x01\x12\x10\n\x02\x08\x01\n\x02\x08\x10\n\x02\x08\x08\n\x02\x08"
    b"\x08B\x04\n\x00\x10\r"
)
OLDEST_RUNTIME = (1, 16)
_LIMIT_S = 60.0
_MOST_DIGITS = 9


def facts(process: BoardProcess) -> Facts:
    """Probe the board: CPU, memory, system, versions, and the channel tile of its float32 kernels."""
    request = {"command": "probe", "tile_model": base64.b64encode(TILE_MODEL).decode()}
    answer = dict(process.ask(request, _LIMIT_S))
    layout = "nchwc" if answer.pop("nchwc", None) is True else "nchw"
    isa = answer.get("isa")
    found = checked(Facts, {**answer, "layout": layout, "tile": tile(layout, isa if isinstance(isa, list) else [])})
    if numbers(found.onnxruntime_version) < OLDEST_RUNTIME:
        raise DeviceError(f"onnxruntime there is {found.onnxruntime_version}, expected 1.16 or newer; update it")
    return found


def numbers(version: str) -> tuple[int, ...]:
    """`3.11.2` → (3, 11); what is no number counts as 0."""
    parts = version.split(".")[:2]
    return tuple(int(p) if p.isascii() and p.isdecimal() and len(p) < _MOST_DIGITS else 0 for p in parts)


def weather(process: BoardProcess) -> Weather:
    """Load, memory, temperatures, throttling, governors, frequencies and steal, now."""
    return checked(Weather, process.ask({"command": "weather"}, _LIMIT_S))


def tile(layout: Literal["nchwc", "nchw"], isa: list[str]) -> int:
    """Channel multiple that the kernels like.

    Blocked layout: one vector of float32, 16 in AVX-512 and 8 otherwise (onnxruntime, MlasNchwcGetBlockSize).
    Plain layout: 4, the step of the matrix-multiply kernels over rows (onnxruntime, SgemmKernelNeon.S).
    """
    if layout == "nchw":
        return 4
    return 16 if "avx512f" in isa else 8


def check_architecture(card: Card, found: str) -> None:
    """Refuse a board with another processor than its card says."""
    if card.expected_architecture not in (None, found):
        raise DeviceError(
            f"device '{card.name}' should be {card.expected_architecture}, found {found}; "
            "correct its card or its address"
        )


def check_card(card: Card, found: Facts) -> None:
    """Refuse a board that is not the one its card describes."""
    check_architecture(card, found.architecture)
    if found.emulated and not card.is_emulated:
        here = card.transport == "local"
        remedy = "run rankfold natively" if here else "to compare outputs there, write emulated = true into its card"
        raise DeviceError(f"device '{card.name}' is emulated on another processor and yields no times; {remedy}")
