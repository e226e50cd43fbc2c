"""The objective of a model on a micro-batch, flattened or padded: the module that the engine wraps."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from aligner.training.engine.attention import NAME as SEGMENTS
from aligner.training.engine.batching import MicroBatch
from aligner.training.engine.head_loss import weighted_nll_of_hidden
from aligner.training.engine.loss import weighted_nll


class Objective(torch.nn.Module):
    """A model together with its objective: what the engine wraps, so that a forward pass gives the loss of a micro-batch.

    flat: the micro-batches are flattened (attention.py), and the head is applied at the target positions alone.
    """

    def __init__(self, model: PreTrainedModel, flat: bool) -> None:
        super().__init__()
        self.model, self.flat = model, flat
        self.softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        if flat:
            model.set_attn_implementation(SEGMENTS)
            attention = model.get_decoder().config._attn_implementation
            assert attention == SEGMENTS, f"the model attends by {attention}: records would see each other"

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        """The micro-batch's weighted negative log-likelihood."""
        if not self.flat:
            logits_BLV = self.model(input_ids=batch.ids_BL, attention_mask=batch.attention_BL, use_cache=False).logits
            return weighted_nll(logits_BLV, batch.target_positions_T, batch.targets_T, batch.weights_T)
        hidden_1NH = self.model.get_decoder()(
            input_ids=batch.ids_BL, position_ids=batch.positions_BL, segments=batch.segments, use_cache=False
        ).last_hidden_state
        hidden_TH, head = hidden_1NH[0, batch.target_positions_T], self.model.get_output_embeddings()
        targets = batch.targets_T, batch.weights_T
        return weighted_nll_of_hidden(hidden_TH, head.weight, head.bias, self.softcap, *targets)
