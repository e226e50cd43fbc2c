"""The scan of a text (RepE's linear artificial tomography): r(l, k) = R(M, t(q, a, c_0..k))[l] . V_c[l], layer by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from aligner.interpretation.directions import Tokens
from aligner.steering.hooks import read, without_head


@dataclass(frozen=True)
class Scan:
    """Scores (L, K) of the first tokens of a correction, in standard deviations of the layer's own states on both continuations:
    above zero is nearer to correcting, below to copying. `tokens`: their texts."""

    question: str
    tokens: tuple[str, ...]
    scores_LK: list[list[float]]


@torch.inference_mode()
def scan(
    model: PreTrainedModel, layers: Sequence[nn.Module], direction_LH: torch.Tensor, row: Tokens, count: int
) -> torch.Tensor:
    """The scores of a correction's first tokens, (L, K), centred and scaled a layer by those of both its continuations."""
    correction_LK, copy_LK = (
        projections(model, layers, direction_LH, row.prompt, ids[:count]) for ids in (row.correction, row.copy)
    )
    both = torch.cat([correction_LK, copy_LK], 1)
    return (correction_LK - both.mean(1, keepdim=True)) / both.std(1, keepdim=True).clamp(min=1e-9)


def projections(
    model: PreTrainedModel,
    layers: Sequence[nn.Module],
    direction_LH: torch.Tensor,
    prompt: Sequence[int],
    ids: Sequence[int],
) -> torch.Tensor:
    """Behind every layer, each token's state along the direction, (L, K); of a layer's states nothing else is kept."""
    along_LK = torch.zeros(len(layers), len(ids))

    def keep(layer: int, states_BLH: torch.Tensor) -> None:
        states_KH = states_BLH[0, len(prompt) :].float()
        along_LK[layer] = (states_KH @ direction_LH[layer].to(states_KH.device)).cpu()

    with read(layers, keep):
        without_head(model)(input_ids=torch.tensor([[*prompt, *ids]], device=model.device), use_cache=False)
    return along_LK
