"""The one objective: maximise the likelihood of the correction given question and answer (paper, equation 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from aligner.training.engine.attention import NAME as SEGMENTS
from aligner.training.engine.batching import MicroBatch
from aligner.training.engine.head_loss import weighted_nll_of_hidden


def weighted_nll(
    logits_BLV: torch.Tensor, places_T: torch.Tensor, targets_T: torch.Tensor, weights_T: torch.Tensor
) -> torch.Tensor:
    """sum over targets of weight x -log p(target | question, answer, correction so far), in fp32; a scalar.

    places_T are indices into the flattened (B x L) grid. No targets: 0, with a graph to send zeros backward through.
    """
    logits_TV = logits_BLV.flatten(0, 1)[places_T].float()
    nll_T = F.cross_entropy(logits_TV, targets_T, reduction="none")
    return (nll_T * weights_T).sum()


class Objective(torch.nn.Module):
    """A model together with its objective: what the engine wraps, so that a forward pass gives the loss of a micro-batch.

    flat: the micro-batches are flattened (attention.py), and the head is applied to the learned places alone.
    """

    def __init__(self, model: PreTrainedModel, flat: bool) -> None:
        super().__init__()
        self.model, self.flat = model, False
        self.softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self.attention = model.config._attn_implementation
        self.set_flat(flat)

    def set_flat(self, flat: bool) -> None:
        """Take flattened micro-batches from here on, or padded ones."""
        if flat != self.flat:
            self.flat = flat
            self.model.set_attn_implementation(SEGMENTS if flat else self.attention)
            taken = self.model.get_decoder().config._attn_implementation
            assert (taken == SEGMENTS) == flat, f"the model attends by {taken}: records would see each other"

    def forward(self, batch: MicroBatch, own: bool = False) -> torch.Tensor:
        """The micro-batch's weighted negative log-likelihood; or the model's own loss of one row that is not padded."""
        if own:
            labels_N = torch.full_like(batch.ids_BL[0], -100)
            labels_N[batch.places_T + 1] = batch.targets_T
            own_loss: torch.Tensor = self.model(input_ids=batch.ids_BL, labels=labels_N[None], use_cache=False).loss
            return own_loss
        if not self.flat:
            logits_BLV = self.model(input_ids=batch.ids_BL, attention_mask=batch.attention_BL, use_cache=False).logits
            return weighted_nll(logits_BLV, batch.places_T, batch.targets_T, batch.weights_T)
        hidden_1NH = self.model.get_decoder()(
            input_ids=batch.ids_BL, position_ids=batch.positions_BL, segments=batch.segments, use_cache=False
        ).last_hidden_state
        head = self.model.get_output_embeddings()
        return weighted_nll_of_hidden(
            hidden_1NH[0, batch.places_T], head.weight, head.bias, self.softcap, batch.targets_T, batch.weights_T
        )
