"""The index of a resume state: which pieces of each parameter it holds, in files of safetensors, written by however many ranks."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from aligner.files import read_json

INDEX = "pieces.json"


class Piece(NamedTuple):
    """`size` numbers of a parameter, from its number `start` on, are in flat tensor `flat` from `offset` on."""

    name: str
    start: int
    size: int
    flat: int
    offset: int


def saved_pieces(state: Path) -> dict[str, list[tuple[Path, Piece]]]:
    """By parameter, its pieces and the ranks' folders they are in."""
    saved: dict[str, list[tuple[Path, Piece]]] = {}
    for folder in sorted(state.glob("rank-*")):
        for piece in map(Piece._make, read_json(folder / INDEX)):
            saved.setdefault(piece.name, []).append((folder, piece))
    return saved
