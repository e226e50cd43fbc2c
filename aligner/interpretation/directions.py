"""Where an Aligner tells copying from correcting: states behind every layer along two continuations of one prompt, a direction
a layer from some rows, and how often it is right on others.

In the paper's words (section 3.4, appendix B.6, where the names of the two sets are swapped):

    A_copy, A_correction = {R(M, t(q, a, a_0..k))}, {R(M, t(q, a, c_0..k))}, 0 < k
        `mean_states`: the mean over k, from where a and c part
    V_c = PCA{normalized(H_correction - H_copy)}
        `principal`; `mean_difference` is the second way of fitting

Suffixes: N rows, L layers, H the model's width, K tokens of a continuation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from aligner.evaluation.rates import Estimate
from aligner.interpretation.statistics import share
from aligner.steering.hooks import read, without_head

SMALLEST = 1e-9  # a length below which a difference has no direction


@dataclass(frozen=True)
class Tokens:
    """A row as ids: its prompt, and behind it the answer copied, and its correction."""

    prompt: list[int]
    copy: list[int]
    correction: list[int]

    def parted(self) -> Tokens:
        """The same from where copy and correction part: the states before are equal, and what both begin with is prompt."""
        same = 0
        while same < min(len(self.copy), len(self.correction)) - 1 and self.copy[same] == self.correction[same]:
            same += 1
        return Tokens(self.prompt + self.copy[:same], self.copy[same:], self.correction[same:])


@dataclass(frozen=True)
class States:
    """What was read of rows: the difference of the mean states, correction less copy, (N, L, H); and by layer the mean length of
    a state, which is the unit of alpha."""

    differences_NLH: torch.Tensor
    norms_L: torch.Tensor


@torch.inference_mode()
def read_rows(
    model: PreTrainedModel, layers: Sequence[nn.Module], rows: Iterable[Tokens], tokens: int, width: int
) -> States:
    """The states of every row. Each is read by itself, so no padding is in them, and of each layer its mean alone is kept."""
    differences, norms = [], []
    for row in map(Tokens.parted, rows):
        (copy_LH, copy_L), (correction_LH, correction_L) = (
            mean_states(model, layers, row.prompt, ids[:tokens], width) for ids in (row.copy, row.correction)
        )
        differences.append(correction_LH - copy_LH)
        norms.append((copy_L + correction_L) / 2)
    return States(torch.stack(differences), torch.stack(norms).mean(0))


def mean_states(
    model: PreTrainedModel, layers: Sequence[nn.Module], prompt: Sequence[int], ids: Sequence[int], width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Behind every layer: the mean state over a continuation, (L, H), and the mean length of its states, (L,)."""
    mean_LH, norm_L = torch.zeros(len(layers), width), torch.zeros(len(layers))

    def keep(layer: int, states_BLH: torch.Tensor) -> None:
        states_KH = states_BLH[0, len(prompt) :].float()
        mean_LH[layer], norm_L[layer] = states_KH.mean(0).cpu(), states_KH.norm(dim=-1).mean().cpu()

    with read(layers, keep):
        without_head(model)(input_ids=torch.tensor([[*prompt, *ids]], device=model.device), use_cache=False)
    return mean_LH, norm_L


def principal(differences_NH: torch.Tensor) -> torch.Tensor:
    """The first principal component of the differences and their opposites, with the sign of most of them.

    With both signs their mean is zero, so that centring, which would take the direction itself away, does nothing.
    """
    unit_NH = normalized(differences_NH)
    first_H = torch.linalg.svd(unit_NH, full_matrices=False).Vh[0]
    return first_H * (1.0 if float((unit_NH @ first_H).sum()) >= 0 else -1.0)


def mean_difference(differences_NH: torch.Tensor) -> torch.Tensor:
    """The mean of the normalized differences, as a unit vector."""
    return normalized(normalized(differences_NH).mean(0))


def normalized(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors along the last dimension, of length one."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=SMALLEST)


WAYS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {"pca": principal, "mean": mean_difference}


def fit(way: str, states: States) -> torch.Tensor:
    """A unit vector for every layer, (L, H)."""
    return torch.stack([WAYS[way](states.differences_NLH[:, layer]) for layer in range(len(states.norms_L))])


def accuracies(direction_LH: torch.Tensor, states: States) -> list[Estimate]:
    """By layer, the share of rows whose correction lies further along the direction than their copy; chance is a half."""
    along_NL = torch.einsum("nlh,lh->nl", states.differences_NLH, direction_LH)
    return [share((along_N > 0).tolist()) for along_N in along_NL.T]


def best_layer(accuracy: Sequence[Estimate], margins: np.ndarray) -> int:
    """The layer with the highest held-out accuracy; of equal ones that with the larger margin."""
    return max(range(len(accuracy)), key=lambda layer: (accuracy[layer].value, margins[layer]))


def margins(direction_LH: torch.Tensor, states: States) -> np.ndarray:
    """By layer, the mean distance along the direction between correction and copy, over the spread of that distance."""
    along_NL = torch.einsum("nlh,lh->nl", states.differences_NLH, direction_LH).numpy()
    return np.asarray(along_NL.mean(0) / np.maximum(along_NL.std(0), SMALLEST))
