"""Where an Aligner's loss lies: on what a correction copies from its answer, on what it edits, and on its end.

Copying is what the identity warm-up teaches and editing what the corrections teach (paper, sections 2 and 3.4); the mean over
all tokens hides which of the two a run is still learning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rapidfuzz.distance import LCSseq
from transformers import PreTrainedModel

from aligner.encoder import Encoder
from aligner.evaluation.figures import COPIED, EDITED, END, KINDS, key_of
from aligner.evaluation.judging import Progress
from aligner.evaluation.pairs import Pair
from aligner.models import positions_of
from aligner.prompts import PromptTemplate

LOGITS = 1 << 27  # numbers of a batch's logits at most: 512 MiB in fp32
CHUNK = 256  # pairs that are tokenised together


class Share(NamedTuple):
    """Of one kind of token: how many, and the sum of their negative log-likelihoods in nats."""

    tokens: int
    nll: float


Shares = dict[str, Share]


def kinds_of(answer: Sequence[int], target: Sequence[int]) -> list[str]:
    """What each id of a correction is: kept from the answer's ids in their order (a longest common subsequence), or not.

    Both end with end-of-text; where a correction ends is a decision of its own.
    """
    kinds = [EDITED] * len(target)
    for block in LCSseq.opcodes(answer[:-1], target[:-1]):
        if block.tag == "equal":
            kinds[block.dest_start : block.dest_end] = [COPIED] * (block.dest_end - block.dest_start)
    kinds[-1] = END
    return kinds


def losses(
    model: PreTrainedModel, encoder: Encoder, template: PromptTemplate, pairs: Sequence[Pair], progress: Progress = iter
) -> dict[int, Shares]:
    """For each pair's place, the losses of its correction given question and answer, by kind.

    A pair that is longer than the model's positions is left out.
    """
    rows = list(_rows(encoder, template, pairs))
    most = positions_of(model.config) or 10**9
    fitting = [place for place, (prompt, target, _) in enumerate(rows) if len(prompt) + len(target) <= most]
    shares = {}
    for batch in progress(_batches(rows, fitting, model.config.get_text_config().vocab_size)):
        nll = _nll(model, [(rows[place][0], rows[place][1]) for place in batch], encoder.eos)
        for place, values in zip(batch, nll, strict=True):
            kinds = rows[place][2]
            each = {kind: [v for v, k in zip(values, kinds, strict=True) if k == kind] for kind in KINDS}
            shares[place] = {kind: Share(len(some), sum(some)) for kind, some in each.items()}
    return shares


Tokenised = tuple[list[int], list[int], list[str]]  # prompt, target, kinds of the target


def _rows(encoder: Encoder, template: PromptTemplate, pairs: Sequence[Pair]) -> Iterator[Tokenised]:
    """An answer's ids are those that it would have as its own correction, so that the same text has the same ids."""
    for start in range(0, len(pairs), CHUNK):
        some = pairs[start : start + CHUNK]
        prompts = [encoder.render(template, pair.question, pair.before) for pair in some]
        answers = encoder.pairs(prompts, [pair.before for pair in some])
        targets = encoder.pairs(prompts, [pair.after for pair in some])
        for (_, answer, _), (prompt, target, _) in zip(answers, targets, strict=True):
            yield prompt, target, kinds_of(answer, target)


def _batches(rows: Sequence[Tokenised], places: Sequence[int], vocabulary: int) -> list[list[int]]:
    """Places of rows of like length, as many as the room for logits allows; the longest first, so that it fails at once."""
    batches: list[list[int]] = []
    for place in sorted(places, key=lambda place: -len(rows[place][0]) - len(rows[place][1])):
        longest = sum(map(len, rows[batches[-1][0]][:2])) if batches else 0
        if not batches or (len(batches[-1]) + 1) * longest * vocabulary > LOGITS:
            batches.append([])
        batches[-1].append(place)
    return batches


@torch.inference_mode()
def _nll(model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]], pad: int) -> list[list[float]]:
    """The negative log-likelihood of every target id, in nats. Rows are padded on the right, where nothing can look."""
    longest = max(len(prompt) + len(target) for prompt, target in rows)
    ids_BL = torch.full((len(rows), longest), pad, device=model.device)
    attention_BL = torch.zeros_like(ids_BL)
    for row, (prompt, target) in enumerate(rows):
        ids_BL[row, : len(prompt) + len(target)] = torch.tensor([*prompt, *target], device=model.device)
        attention_BL[row, : len(prompt) + len(target)] = 1
    logits_BLV = model(input_ids=ids_BL, attention_mask=attention_BL, use_cache=False).logits
    nll_rows = []
    for row, (prompt, target) in enumerate(rows):
        logits_TV = logits_BLV[row, len(prompt) - 1 : len(prompt) + len(target) - 1].float()
        nll_rows.append(
            F.cross_entropy(logits_TV, torch.tensor(target, device=logits_TV.device), reduction="none").tolist()
        )
    return nll_rows


def means(shares_by_place: Mapping[int, Shares], pairs: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    """The mean loss per token of each kind and how many tokens it is of, over all pairs and by upstream."""
    names = list(dict.fromkeys(pair.upstream for pair in pairs))
    groups = {"all": list(shares_by_place.values())}
    if len(names) > 1:
        groups |= {
            key_of(name): [
                shares_by_place[p] for p, pair in enumerate(pairs) if pair.upstream == name and p in shares_by_place
            ]
            for name in names
        }
    return {name: {kind: _mean([shares[kind] for shares in group]) for kind in KINDS} for name, group in groups.items()}


def _mean(shares: Sequence[Share]) -> dict[str, Any]:
    tokens = sum(share.tokens for share in shares)
    return {"tokens": tokens, "loss": sum(share.nll for share in shares) / tokens if tokens else None}
