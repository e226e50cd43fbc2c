"""What the classifier sees of a question: the mean of a local model's hidden states over the question's tokens, behind its middle
layer. The last layers are busy with the next word; in the middle a text is told from another more surely (README, measured).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from aligner.models import positions_of
from aligner.records import UserError
from aligner.steering.hooks import decoder_layers, states_of

STATES = "behind the middle layer"  # as a classifier's card says it
BATCH = 32
LONGEST = 512  # tokens of a text that are read
CHARACTERS = 16  # of a text that are looked at, for each of those tokens


def middle_layer(base: Any) -> nn.Module | None:
    """The layer whose states are read; None (the last ones) where no list of layers is found. base: a model without its head."""
    try:
        layers = decoder_layers(base)
    except UserError:
        return None
    return layers[(len(layers) - 1) // 2]


@torch.inference_mode()
def mean_states(base: Any, tokenizer: Any, texts: Sequence[str], layer: nn.Module | None = None) -> torch.Tensor:
    """The mean state of each text behind `layer` (None: the last hidden states), (N, H), in their order."""
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
        hidden_BLH = _states(base, layer, ids_BL, mask_BL).to(mask_BL.device).float()
        mean_BH = (hidden_BLH * mask_BL[:, :, None]).sum(1) / mask_BL.sum(1, keepdim=True)
        vectors |= dict(zip(some, mean_BH.cpu(), strict=True))
    return torch.stack([vectors[place] for place in range(len(ids))])


class _LayerReached(Exception):
    """The layer's states are there: nobody needs those behind it."""

    def __init__(self, states_BLH: torch.Tensor) -> None:
        super().__init__()
        self.states_BLH = states_BLH


def _states(base: Any, layer: nn.Module | None, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """What the layer returns, or the last hidden states. The pass ends behind the layer; another thread's, which may decode with
    the same model, does not."""
    own = threading.get_ident()

    def end(_: nn.Module, __: Any, output: Any) -> None:
        if threading.get_ident() == own:
            raise _LayerReached(states_of(output))

    handle = layer.register_forward_hook(end) if layer else None
    try:
        last_BLH: torch.Tensor = base(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
    except _LayerReached as reached:
        return reached.states_BLH
    finally:
        if handle:
            handle.remove()
    return last_BLH
