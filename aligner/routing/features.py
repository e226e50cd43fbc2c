"""What the classifier sees of a question: the mean of a local model's last hidden states over the question's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aligner.models import positions_of

BATCH = 32
LONGEST = 512  # tokens of a text that are read
CHARACTERS = 16  # of a text that are looked at, for each of those tokens


@torch.inference_mode()
def mean_states(base: Any, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """The mean last hidden state of each text, (N, H), in their order. base: a model without its head."""
    longest = min(positions_of(base.config) or LONGEST, LONGEST)
    ids = [
        tokenizer(text[: CHARACTERS * longest], truncation=True, max_length=longest)["input_ids"] or [0]
        for text in texts
    ]
    order, vectors = sorted(range(len(ids)), key=lambda place: len(ids[place])), dict[int, torch.Tensor]()
    for at in range(0, len(order), BATCH):
        some = order[at : at + BATCH]
        length = max(len(ids[place]) for place in some)
        ids_BL = torch.tensor([ids[place] + [0] * (length - len(ids[place])) for place in some], device=base.device)
        mask_BL = torch.tensor(
            [[1] * len(ids[place]) + [0] * (length - len(ids[place])) for place in some], device=base.device
        )
        hidden_BLH = base(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state.float()
        mean_BH = (hidden_BLH * mask_BL[:, :, None]).sum(1) / mask_BL.sum(1, keepdim=True)
        vectors |= dict(zip(some, mean_BH.cpu(), strict=True))
    return torch.stack([vectors[place] for place in range(len(ids))])
