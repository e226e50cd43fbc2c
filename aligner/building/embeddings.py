"""How near two questions are in meaning, by a local model's embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from aligner.demo import locate
from aligner.models import check_place, load_tokenizer, positions_of
from aligner.records import UserError

BATCH = 32


def nearest(texts: Sequence[str], others: Sequence[str], folder: str) -> list[tuple[int, float]]:
    """For each text the place of the nearest other one and the cosine of their embeddings, -1 to 1.

    The embedding is the mean of the last hidden states, as sentence-transformers' models have it by default. UserError where
    the folder or hub id holds no model.
    """
    place = locate(folder)
    check_place(place)
    try:
        model = AutoModel.from_pretrained(place).eval()
    except (OSError, ValueError) as error:
        raise UserError(f"leaks.model: {folder} cannot be opened ({str(error).splitlines()[0][:120]}).") from None
    tokenizer = load_tokenizer(place, False)
    texts_NH, others_MH = (_embedded(model, tokenizer, each) for each in (texts, others))
    result = []
    for rows_BH in texts_NH.split(1024):
        best = (rows_BH @ others_MH.T).max(dim=1)
        result += list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return result


@torch.inference_mode()
def _embedded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> torch.Tensor:
    """Unit vectors, N x H, in the order of the texts."""
    longest = min(positions_of(model.config) or 512, 512)
    ids = [tokenizer(text, truncation=True, max_length=longest)["input_ids"] or [0] for text in texts]
    order, vectors = sorted(range(len(ids)), key=lambda place: len(ids[place])), dict[int, torch.Tensor]()
    for at in range(0, len(order), BATCH):
        some = order[at : at + BATCH]
        length = max(len(ids[place]) for place in some)
        ids_BL = torch.tensor([ids[place] + [0] * (length - len(ids[place])) for place in some])
        mask_BL = torch.tensor([[1] * len(ids[place]) + [0] * (length - len(ids[place])) for place in some])
        hidden_BLH = model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state.float()
        mean_BH = (hidden_BLH * mask_BL[:, :, None]).sum(1) / mask_BL.sum(1, keepdim=True)
        vectors |= dict(zip(some, torch.nn.functional.normalize(mean_BH, dim=1), strict=True))
    return torch.stack([vectors[place] for place in range(len(ids))])
