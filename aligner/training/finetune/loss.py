"""The one objective: maximise the likelihood of the correction given question and answer (paper, equation 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def weighted_nll(
    logits_BLV: torch.Tensor, places_T: torch.Tensor, targets_T: torch.Tensor, weights_T: torch.Tensor
) -> torch.Tensor:
    """sum over targets of weight x -log p(target | question, answer, correction so far), in fp32; a scalar.

    places_T are indices into the flattened (B x L) grid. No targets: 0, with a graph to send zeros backward through.
    """
    logits_TV = logits_BLV.flatten(0, 1)[places_T].float()
    nll_T = F.cross_entropy(logits_TV, targets_T, reduction="none")
    return (nll_T * weights_T).sum()
