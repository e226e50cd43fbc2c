"""How near two questions are in meaning, by a local model's embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn.functional import normalize
from transformers import AutoModel

from aligner.demo import locate
from aligner.models import check_place, load_tokenizer
from aligner.records import UserError
from aligner.routing.features import mean_states


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
    texts_NH, others_MH = (normalize(mean_states(model, tokenizer, each), dim=1) for each in (texts, others))
    result = []
    for rows_BH in texts_NH.split(1024):
        best = (rows_BH @ others_MH.T).max(dim=1)
        result += list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return result
