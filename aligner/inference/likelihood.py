"""How likely a text is as a correction, under the Aligner that corrects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

PIECE = 256  # tokens whose logits are turned into probabilities at once


@torch.inference_mode()
def log_likelihood(model: PreTrainedModel, prompt: Sequence[int], correction: Sequence[int]) -> float:
    """The log-probability, in nats, of the tokens of a correction behind a prompt."""
    ids = torch.tensor([[*prompt, *correction]], device=model.device)
    count = len(correction)
    logits_LV = model(input_ids=ids[:, :-1], logits_to_keep=count).logits[0, -count:]
    targets = ids[0, -count:].to(logits_LV.device)
    pieces = range(0, count, PIECE)
    return -sum(
        torch.nn.functional.cross_entropy(
            logits_LV[i : i + PIECE].float(), targets[i : i + PIECE], reduction="sum"
        ).item()
        for i in pieces
    )
