"""rankfold: train networks small, fold them exactly, and prove on the board that they got faster.

train/    shrink a network while it learns            recipe → checkpoint
export/   choose and write the small graph            checkpoint or ONNX → ONNX, plan, parity
runtime/  measure it                                  ONNX → bench.json → report
devices/  what a board is and how to reach it         card → facts, launches
records/, errors.py, files.py: the leaves. cli.py: the one command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .train.regularizer import CompressionAware

__all__ = ["CompressionAware"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "CompressionAware":
        from .train.regularizer import CompressionAware

        return CompressionAware
    raise AttributeError(f"module 'rankfold' has no attribute {name!r}")
