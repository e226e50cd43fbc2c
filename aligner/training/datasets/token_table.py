"""The tokens of many records as three arrays: they can lie in one mapped file, of which all ranks of a host share the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from aligner.records import Origin
from aligner.training.datasets.supervised import Tokens


@dataclass(frozen=True, eq=False)
class TokenTable(Sequence[Tokens]):
    """N ids of R records, to be read as a list of Tokens, each of which is made when it is asked for.

    ids_N: the records behind each other. rows: for each record the end of its ids, the length of its prompt, the number of its
    file in `files`, its row there, and whether it is cut and merged; (R x 6) whole numbers.
    """

    ids_N: np.ndarray
    rows: np.ndarray
    files: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Tokens: ...
    @overload
    def __getitem__(self, place: slice) -> list[Tokens]: ...
    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        end, prompt, file, row, cut, merged = self.rows[place].tolist()
        start = int(self.rows[place - 1, 0]) if place else 0
        return Tokens(self.ids_N[start:end], prompt, Origin(self.files[file], row), bool(cut), bool(merged))


def table_of(tokens: Sequence[Tokens]) -> TokenTable:
    """Records that are tokens already, as a table."""
    number: dict[str, int] = {}
    ends = np.cumsum([len(row.ids) for row in tokens])
    rows = [
        (end, t.prompt_length, number.setdefault(t.origin.file, len(number)), t.origin.row, t.cut, t.merged)
        for end, t in zip(ends, tokens, strict=True)
    ]
    return TokenTable(np.concatenate([row.ids for row in tokens]), np.array(rows, dtype=np.int64), tuple(number))


def lengths_of(tokens: Sequence[Tokens]) -> np.ndarray:
    """The number of ids of each record."""
    if isinstance(tokens, TokenTable):
        return np.diff(tokens.rows[:, 0], prepend=0)
    return np.array([len(row.ids) for row in tokens], dtype=np.int64)


def target_lengths_of(tokens: Sequence[Tokens]) -> np.ndarray:
    """The number of learned tokens of each record."""
    if isinstance(tokens, TokenTable):
        return lengths_of(tokens) - tokens.rows[:, 1]
    return np.array([row.target_length for row in tokens], dtype=np.int64)
