"""How rows are called, and where the other rows lie: who met whom, and what the ways to a file cost."""

from __future__ import annotations

from ...records import PeerRow
from ...terminal import duration

ANSWERS, TOOLCHAIN = ".answers.jsonl", "toolchain"  # beside the rows; what is asked there beside the classes


def learned(row: PeerRow) -> str:
    """How long, and from what."""
    if row.weight is None:
        return "0 epochs"
    return f"{row.epochs:g} epochs, {'distilled' if row.weight else 'labels alone'}"


def said(row: PeerRow) -> str:
    """A row in a line, as it is made."""
    what = f"{row.network}: {row.tool}, {row.setting}, {learned(row)}, {row.precision}"
    if row.failed:
        return f"{what}: no network: {row.failed}"
    score = "" if row.validation_accuracy is None else f", validation {row.validation_accuracy:.2%}"
    return f"{what}{score}, {(row.macs or 0) / 1e6:.2f} M MACs, {duration((row.compress_s or 0) + row.train_s)}"


def note_of(ours: PeerRow, peer: PeerRow) -> str:
    """The networks that met in launch pairs."""
    return f"{ours.config_hash} ({ours.setting}) against {peer.config_hash} ({peer.tool}, {peer.setting})"
