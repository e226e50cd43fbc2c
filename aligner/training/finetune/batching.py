"""update -> micro-batches (law 1): which records an update has is a pure function of (data, seed, epoch, update).

Where they are computed (ranks, micro-batches, padding) changes the gradient only by floating-point order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from aligner.training.datasets.supervised import Tokens
from aligner.training.plan import Plan


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one rank computes at once. B rows padded on the right to L tokens, T learned tokens in all.

    places_T are the places in the flattened B x L grid whose logits predict the targets; weights_T what each target's
    negative log-likelihood counts in the update's loss.
    """

    ids_BL: torch.Tensor
    attention_BL: torch.Tensor
    places_T: torch.Tensor
    targets_T: torch.Tensor
    weights_T: torch.Tensor

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device, copied without waiting."""
        tensors = self.ids_BL, self.attention_BL, self.places_T, self.targets_T, self.weights_T
        return MicroBatch(*(tensor.to(device, non_blocking=True) for tensor in tensors))


def rows_of_update(plan: Plan, seed: int, update: int) -> tuple[int, np.ndarray]:
    """The epoch of an update (from 0) and its records' indices in order. Each epoch is shuffled anew."""
    epoch, place = divmod(update, plan.updates_per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(plan.records)
    start = place * plan.records_per_update
    return epoch, order[start : start + plan.records_per_update]


def row_weights(target_lengths: Sequence[int], micro_batch_size: int, reduction: str) -> np.ndarray:
    """What each target token of each row counts in the update's loss; over the update, tokens x weights sum to 1.

    'token': one over all target tokens. 'micro_batch': the mean over virtual micro-batches (runs of
    `micro_batch_size` rows in update order) of each one's mean over its target tokens: the original's objective.
    """
    lengths = np.asarray(target_lengths, dtype=np.float64)
    if reduction == "token":
        return np.full(len(lengths), 1.0 / lengths.sum())
    starts = np.arange(0, len(lengths), micro_batch_size)
    tokens_of_virtual = np.add.reduceat(lengths, starts)
    return 1.0 / (len(starts) * tokens_of_virtual[np.arange(len(lengths)) // micro_batch_size])


def layout(rows: int, micro_batch_size: int, ranks: int, rank: int) -> list[np.ndarray]:
    """The places (0 to rows - 1) of each micro-batch of one rank. Every rank has as many; one without rows is empty."""
    batches = [np.arange(s, min(s + micro_batch_size, rows)) for s in range(0, rows, micro_batch_size)]
    count = -(-len(batches) // ranks)
    batches += [np.arange(0)] * (count * ranks - len(batches))
    return batches[rank::ranks]


def collate(rows: Sequence[Tokens], weights: Sequence[float], pad: int) -> MicroBatch:
    """Pad rows on the right and name the places that are learned. Labels and attention come from lengths."""
    longest = max(len(row.ids) for row in rows)
    ids_BL = np.full((len(rows), longest), pad, dtype=np.int64)
    attention_BL = np.zeros((len(rows), longest), dtype=np.int64)
    places, targets, target_weights = [], [], []
    for index, (row, weight) in enumerate(zip(rows, weights, strict=True)):
        length = len(row.ids)
        ids_BL[index, :length] = row.ids
        attention_BL[index, :length] = 1
        if weight:
            start = max(row.prompt_length, 1)  # the very first token has nothing before it to be predicted from
            places.append(index * longest + np.arange(start, length) - 1)
            targets.append(row.ids[start:].astype(np.int64))
            target_weights.append(np.full(length - start, weight, dtype=np.float32))
    return MicroBatch(
        torch.from_numpy(ids_BL),
        torch.from_numpy(attention_BL),
        _joined(places, np.int64),
        _joined(targets, np.int64),
        _joined(target_weights, np.float32),
    )


def _joined(parts: list[np.ndarray], kind: type) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, dtype=kind))


def micro_batches(
    tokens: Sequence[Tokens], rows: np.ndarray, weights: np.ndarray, size: int, ranks: int, rank: int, pad: int
) -> list[MicroBatch]:
    """One rank's micro-batches of `rows`, whose targets weigh `weights`.

    A micro-batch without rows is carried as the first row with weight zero: every rank makes the same calls.
    """
    batches = []
    for places in layout(len(rows), size, ranks, rank):
        chosen = places if len(places) else np.zeros(1, dtype=np.int64)
        scale = 1.0 if len(places) else 0.0
        batches.append(collate([tokens[rows[p]] for p in chosen], [scale * weights[p] for p in chosen], pad))
    return batches
