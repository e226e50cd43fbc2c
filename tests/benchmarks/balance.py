"""How much of all ranks' time is spent on real tokens, by how an update's rows are laid into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aligner.training.engine.batching import balanced_layout, padded_layout
from tests.benchmarks import original
from tests.benchmarks.workloads import Workload, lengths_of, rows_of


def balance(lengths: Sequence[int], batches: Sequence[Sequence[np.ndarray]], padded: bool) -> float:
    """Real tokens over ranks x the sum of each micro-batch's slowest rank, in tokens it computes."""
    ranks = len(batches)
    slowest = 0
    for together in zip(*batches, strict=True):
        slowest += max(
            (max(lengths[p] for p in places) * len(places) if padded else sum(lengths[p] for p in places))
            if len(places) else 0 for places in together
        )  # fmt: skip
    return sum(lengths) / (ranks * slowest)


def balance_lines(kinds: Sequence[str], records: int = 256, ranks: int = 8, deep: int = 8) -> list[str]:
    """For each kind of lengths: the balance of the original's layout and of ours."""
    lines = []
    for kind in kinds:
        if kind == "real":
            lengths = [len(row.ids) for row in rows_of(Workload(49_152, "real"), records)]
        else:
            lengths = [p + c for p, c in lengths_of(kind, records, 0)]
        budget = int(1.05 * sum(lengths) / (ranks * deep))
        ours = balanced_layout(lengths, lengths, budget, ranks)
        theirs = balance(lengths, padded_layout(records, original.ROWS, ranks), padded=True)
        lines.append(f"balance of {records} rows on {ranks} ranks, {kind}: the original's {theirs:.1%}, "
                     f"ours {balance(lengths, ours, padded=False):.2%} in {len(ours[0])} micro-batches")  # fmt: skip
    return lines
