"""The one objective: maximise the likelihood of the correction given question and answer (paper, equation 4).

    loss = sum over the update's target tokens of  weight x -log p(target | question, answer, correction so far)

Summed over the target tokens of an update, the weights are 1 (batching.row_weights). objective.py applies this to a model;
head_loss.py computes the same from hidden states, without the logits of a whole micro-batch at once. Suffixes of names are
dimensions: B rows, L tokens, V vocabulary, T targets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def weighted_nll(
    logits_BLV: torch.Tensor, target_positions_T: torch.Tensor, targets_T: torch.Tensor, weights_T: torch.Tensor
) -> torch.Tensor:
    """The weighted negative log-likelihood of T targets, in fp32; a scalar.

    target_positions_T are indices into the flattened (B x L) grid: where each target is predicted. No targets: 0, with a
    graph to send zeros backward through.
    """
    logits_TV = logits_BLV.flatten(0, 1)[target_positions_T].float()
    nll_T = F.cross_entropy(logits_TV, targets_T, reduction="none")
    return (nll_T * weights_T).sum()
