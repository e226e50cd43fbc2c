"""Keys and values of rows that are not equally long: each row's are written behind its own.

Rejected drafts need no clean-up. A row counts its tokens as far as they were accepted; what lies behind is never read, and
written over by the next pass.
"""

from __future__ import annotations

from typing import Any

import torch

ROOM = 256  # places are taken in steps of this many


class RowCache:
    """Takes the place of transformers' cache. Its rows are numbered 0, 1, 2, ..."""

    def __init__(self) -> None:
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []  # keys and values, (rows, heads, places, size)
        self.rows = slice(0, 0)
        self.places_BQ = torch.zeros(0, 0, dtype=torch.long)
        self.length = 0

    def open(self, first: int, places_BQ: torch.Tensor, length: int) -> None:
        """Set where the keys and values of the next forward pass are written: rows from `first` on, and a place per token.

        Places of -1 are for padding. Attention will see the first `length` places.
        """
        self.rows = slice(first, first + len(places_BQ))
        self.places_BQ, self.length = places_BQ, length

    def update(
        self, keys_BHQD: torch.Tensor, values_BHQD: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new keys and values; all that attention may see of these rows, (B, H, length, D)."""
        if layer == len(self.layers):
            self.layers.append((_empty(keys_BHQD), _empty(values_BHQD)))
        keys, values = self.layers[layer]
        if len(keys) < self.rows.stop or keys.shape[2] <= self.length:  # one more, for padding
            keys, values = self._grown(keys), self._grown(values)
            self.layers[layer] = keys, values
        device = keys.device
        rows_B1 = torch.arange(self.rows.start, self.rows.stop, device=device)[:, None]
        places_BQ = self.places_BQ.to(device)
        keys[rows_B1, :, places_BQ] = keys_BHQD.transpose(1, 2)
        values[rows_B1, :, places_BQ] = values_BHQD.transpose(1, 2)
        return keys[self.rows, :, : self.length], values[self.rows, :, : self.length]

    def _grown(self, old: torch.Tensor) -> torch.Tensor:
        rows = max(len(old), self.rows.stop)
        places = max(old.shape[2], (self.length // ROOM + 1) * ROOM)
        new = old.new_zeros(rows, old.shape[1], places, old.shape[3])  # zeros: a masked NaN would still be one
        new[: len(old), :, : old.shape[2]] = old
        return new

    @torch.inference_mode()
    def move(self, row: int, to: int) -> None:
        """Move a row to a place that has become free."""
        for keys, values in self.layers:
            keys[to], values[to] = keys[row], values[row]

    def get_seq_length(self, layer: int = 0) -> int:
        """Asked by transformers; places are given with every pass instead."""
        return self.length


def _empty(like_BHQD: torch.Tensor) -> torch.Tensor:
    return like_BHQD.new_zeros(0, like_BHQD.shape[1], 0, like_BHQD.shape[3])
