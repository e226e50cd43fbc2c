"""The original's training step, written from its description: the baseline of the benchmarks.

Rows padded to the longest of four, logits of every place in fp32, transformers' own loss, the mean over micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from aligner.training.datasets.supervised import IGNORED, Tokens

ROWS = 4  # of a micro-batch


def padded(rows: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, attention mask and labels, all B x L."""
    longest = max(len(row.ids) for row in rows)
    ids_BL = torch.zeros(len(rows), longest, dtype=torch.long)
    attention_BL, labels_BL = torch.zeros_like(ids_BL), torch.full_like(ids_BL, IGNORED)
    for place, row in enumerate(rows):
        ids_BL[place, : len(row.ids)] = torch.from_numpy(row.ids)
        attention_BL[place, : len(row.ids)] = 1
        labels_BL[place, : len(row.ids)] = torch.tensor(row.labels())
    return ids_BL, attention_BL, labels_BL


def micro_batch_loss(model: PreTrainedModel, rows: Sequence[Tokens]) -> torch.Tensor:
    """The mean over a micro-batch's target tokens."""
    ids_BL, attention_BL, labels_BL = padded(rows)
    loss: torch.Tensor = model(input_ids=ids_BL, attention_mask=attention_BL, labels=labels_BL, use_cache=False).loss
    return loss


def step(model: PreTrainedModel, rows: Sequence[Tokens]) -> float:
    """One update's gradient. Returns its loss."""
    total, starts = 0.0, range(0, len(rows), ROWS)
    for start in starts:
        loss = micro_batch_loss(model, rows[start : start + ROWS]) / len(starts)
        loss.backward()
        total += loss.item()
    return total
