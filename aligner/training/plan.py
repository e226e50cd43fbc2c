"""The arithmetic of a run: rows, updates, and the learning-rate warm-up."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """How records become updates. Fixed when a run begins; the number of ranks may change on resume, the rest not.

    records: rows kept. records_per_update: rows of one update. micro_batch_size: rows of a virtual micro-batch, and of
    a real one on each rank. ranks: processes. warmup_ratio: share of the updates, 0 to 1.
    """

    records: int
    records_per_update: int
    micro_batch_size: int
    ranks: int
    epochs: int
    warmup_ratio: float

    @property
    def updates_per_epoch(self) -> int:
        """Every record is in exactly one update of an epoch; the last one may hold fewer records."""
        return math.ceil(self.records / self.records_per_update)

    @property
    def updates(self) -> int:
        """Optimizer updates of the whole run."""
        return self.epochs * self.updates_per_epoch

    @property
    def warmup_updates(self) -> int:
        """Updates in which the learning rate rises from 0."""
        return math.ceil(self.updates * self.warmup_ratio)

    @property
    def accumulation(self) -> int:
        """Micro-batches per rank in a whole update."""
        return math.ceil(math.ceil(self.records_per_update / self.micro_batch_size) / self.ranks)

    def line(self) -> str:
        """The arithmetic for a reader."""
        ranks = "1 rank" if self.ranks == 1 else f"{self.ranks} ranks"
        full = self.ranks * self.micro_batch_size * self.accumulation == self.records_per_update
        room = "" if full else ", not all of them full,"
        product = f"{ranks} x {self.micro_batch_size} rows x {self.accumulation} accumulation{room}"
        return (
            f"{product} = {self.records_per_update} rows per update; {self.records:,} rows x {self.epochs} epochs = "
            f"{self.updates:,} updates, {self.warmup_updates:,} of them learning-rate warm-up"
        )
