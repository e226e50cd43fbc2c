"""update -> micro-batches (law 1): which records an update has is a pure function of (data, seed, epoch, update).

Where they are computed (ranks, micro-batches, padding) changes the gradient only by floating-point order.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch

from aligner.training.datasets.supervised import Tokens
from aligner.training.plan import Plan

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Segments:
    """Where each record lies among N flattened tokens: its first position and its last plus one, also as a tensor."""

    bounds: tuple[tuple[int, int], ...]
    starts_S: torch.Tensor  # S + 1 int32 values, from 0 to N, on the tokens' device

    @property
    def longest(self) -> int:
        """Tokens of the longest record."""
        return max(end - start for start, end in self.bounds)

    def to(self, device: torch.device) -> Segments:
        """The same on a device, copied without waiting."""
        return Segments(self.bounds, self.starts_S.to(device, non_blocking=True))


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one rank computes at once, T learned tokens in all. Flattened: B is 1 and L all its records' tokens; or B rows
    padded on the right to L tokens, with attention_BL and without segments.

    target_positions_T: where in the flattened B x L grid the hidden states are that predict the targets. weights_T: what
    each target's negative log-likelihood counts in the update's loss.
    """

    ids_BL: torch.Tensor
    positions_BL: torch.Tensor | None
    attention_BL: torch.Tensor | None
    segments: Segments | None
    target_positions_T: torch.Tensor
    targets_T: torch.Tensor
    weights_T: torch.Tensor

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device, copied without waiting."""
        on_device: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                on_device[field.name] = value.to(device, non_blocking=True)
            elif value is not None:
                on_device[field.name] = value.to(device)
        return replace(self, **on_device)


@dataclass(frozen=True)
class Layout:
    """How an update's rows are laid into micro-batches.

    flat: without padding, by tokens; else `rows` padded rows each. tokens: the most tokens of a flattened micro-batch of
    several records. target_cost: what a learned token costs beside the 1 of any token (the head's share). border: rows of more
    tokens than this are computed apart from the others (rotations.py).
    """

    flat: bool
    rows: int
    tokens: int
    pad: int
    target_cost: float = 0.0
    border: int | None = None


def rows_of_update(plan: Plan, seed: int, update: int) -> tuple[int, np.ndarray]:
    """The epoch of an update (from 0) and its records' indices in order. Each epoch is shuffled anew."""
    epoch, place = divmod(update, plan.updates_per_epoch)
    start = place * plan.records_per_update
    return epoch, order_of_epoch(plan.records, seed, epoch)[start : start + plan.records_per_update]


@lru_cache(maxsize=1)
def order_of_epoch(records: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch's records. Kept while the epoch lasts: ten million take half a second to shuffle."""
    order = np.random.default_rng([seed, epoch]).permutation(records)
    order.setflags(write=False)  # all updates read the same
    return order


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


def padded_layout(rows: int, micro_batch_size: int, ranks: int) -> list[list[np.ndarray]]:
    """For each rank the places (0 to rows - 1) of its micro-batches, in order. Every rank has as many; some are empty."""
    batches = [np.arange(s, min(s + micro_batch_size, rows)) for s in range(0, rows, micro_batch_size)]
    count = -(-len(batches) // ranks)
    batches += [np.arange(0)] * (count * ranks - len(batches))
    return [batches[rank::ranks] for rank in range(ranks)]


def balanced_layout(lengths: Sequence[int], costs: Sequence[float], budget: int, ranks: int) -> list[list[np.ndarray]]:
    """The same by tokens: as few micro-batches as keep within the budget, all of about the same cost.

    Longest processing time first into ranks x count bins; those of like cost are computed at the same time, since ranks
    wait for each other after each. A record longer than the budget is a micro-batch of its own.
    """
    order = np.argsort(-np.asarray(costs), kind="stable")
    count = max(1, -(-int(sum(lengths)) // (ranks * budget)))
    while True:
        bins = _fill(costs, order, ranks * count)
        if all(len(places) < 2 or sum(lengths[p] for p in places) <= budget for places in bins):
            break
        count += 1
    bins.sort(key=lambda places: -sum(costs[p] for p in places))
    steps = [bins[s : s + ranks] for s in range(0, len(bins), ranks)]
    alternating = [step if index % 2 == 0 else step[::-1] for index, step in enumerate(steps)]
    return [[np.array(sorted(step[rank]), dtype=np.int64) for step in alternating] for rank in range(ranks)]


def _fill(costs: Sequence[float], order: np.ndarray, count: int) -> list[list[int]]:
    """The places in this order, each into the cheapest of `count` bins."""
    heap = [(0.0, index) for index in range(count)]
    bins: list[list[int]] = [[] for _ in range(count)]
    for place in order:
        cost, index = heapq.heappop(heap)
        bins[index].append(int(place))
        heapq.heappush(heap, (cost + costs[place], index))
    return bins


def collate(rows: Sequence[Tokens], weights: Sequence[float], layout: Layout) -> MicroBatch:
    """Put rows behind each other, or pad them on the right, and list the target positions. All from lengths."""
    longest = max(len(row.ids) for row in rows)
    starts = np.cumsum([0, *(len(row.ids) for row in rows)]) if layout.flat else np.arange(len(rows) + 1) * longest
    target_positions, targets, target_weights = [], [], []
    for row, weight, start in zip(rows, weights, starts, strict=False):
        if weight:
            first = max(row.prompt_length, 1)  # the very first token has nothing before it to be predicted from
            target_positions.append(start + np.arange(first, len(row.ids)) - 1)
            targets.append(row.ids[first:].astype(np.int64))
            target_weights.append(np.full(len(row.ids) - first, weight, dtype=np.float32))
    target_tensors = (
        _joined(target_positions, np.int64),
        _joined(targets, np.int64),
        _joined(target_weights, np.float32),
    )
    if layout.flat:
        ids = np.concatenate([row.ids for row in rows]).astype(np.int64)
        positions = np.concatenate([np.arange(len(row.ids)) for row in rows])
        bounds = tuple((int(a), int(b)) for a, b in itertools.pairwise(starts))
        segments = Segments(bounds, torch.from_numpy(starts.astype(np.int32)))
        return MicroBatch(
            torch.from_numpy(ids)[None], torch.from_numpy(positions)[None], None, segments, *target_tensors
        )
    ids_BL = np.full((len(rows), longest), layout.pad, dtype=np.int64)
    attention_BL = np.zeros((len(rows), longest), dtype=np.int64)
    for index, row in enumerate(rows):
        ids_BL[index, : len(row.ids)] = row.ids
        attention_BL[index, : len(row.ids)] = 1
    return MicroBatch(torch.from_numpy(ids_BL), None, torch.from_numpy(attention_BL), None, *target_tensors)


def _places(tokens: Sequence[Tokens], rows: np.ndarray, layout: Layout, ranks: int) -> list[list[np.ndarray]]:
    """For each rank the places in `rows` of its micro-batches."""
    if not layout.flat:
        return padded_layout(len(rows), layout.rows, ranks)
    lengths = [len(tokens[row].ids) for row in rows]
    costs = [len(tokens[row].ids) + layout.target_cost * tokens[row].target_length for row in rows]
    return balanced_layout(lengths, costs, layout.tokens, ranks)


def _joined(parts: list[np.ndarray], kind: type) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, dtype=kind))


def micro_batches(
    tokens: Sequence[Tokens], rows: np.ndarray, weights: np.ndarray, layout: Layout, ranks: int, rank: int
) -> list[MicroBatch]:
    """One rank's micro-batches of `rows`, whose targets weigh `weights`.

    A micro-batch without rows is carried as the first row with weight zero: every rank makes the same calls.
    """
    long = np.array([layout.border is not None and len(tokens[row].ids) > layout.border for row in rows], dtype=bool)
    mine = []
    for side in (np.flatnonzero(~long), np.flatnonzero(long)):
        mine += [side[places] for places in _places(tokens, rows[side], layout, ranks)[rank]] if len(side) else []
    batches = []
    for places in mine:
        chosen = places if len(places) else np.zeros(1, dtype=np.int64)
        scale = 1.0 if len(places) else 0.0
        batches.append(collate([tokens[rows[p]] for p in chosen], [scale * weights[p] for p in chosen], layout))
    return batches


def prefetch(make: Callable[[int], T], numbers: Iterable[int]) -> Iterator[T]:
    """Yield `make(number)` for each number, the next one being computed while this one is used."""
    with ThreadPoolExecutor(1) as worker:
        current: Future[T] | None = None
        for number in numbers:
            following = worker.submit(make, number)
            if current:
                yield current.result()
            current = following
        if current:
            yield current.result()
