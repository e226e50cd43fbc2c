"""Preference likelihood: how often a model finds the better answer likelier than the worse one, with either of them before it.

With the worse answer in the prompt a model that copies prefers the worse, with the better one in the prompt the better: balanced
over both, copying is worth a half, and only knowledge of the direction is worth more. Where copying decides every case, the sum of
both contexts still shows a direction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from aligner.evaluation.losses import losses
from aligner.evaluation.measures.controls import IDENTITY
from aligner.evaluation.measures.items import MeasuredAnswer, rows_of
from aligner.evaluation.measures.table import ALIGNER, Scores, part_figures
from aligner.evaluation.pairs import Pair
from aligner.inference.corrector import Corrector
from aligner.records import Origin

ALIKE = 1.25  # lengths of a pair that count as matched: one at most so many times the other
Progress = Callable[..., Any]
CONTEXTS = ("the worse answer given", "the better answer given")


def preference_figures(
    path: str, limit: int | None, systems: Mapping[str, Callable[[], Corrector]], progress: Progress
) -> dict[str, Any]:
    """The parts of the report: by token and in sum, of both contexts together and of each, of all pairs and of length-matched ones.
    The systems, ALIGNER first, are opened one after another; a coin, worth a half, stands for leaving the answers alone."""
    rows = [row for row in rows_of(path, "question", "answer", "correction") if row["answer"] != row["correction"]]
    rows = rows[:limit]
    scores: dict[str, dict[str, Scores]] = {}  # part -> system -> place -> score
    for name, open_model in systems.items():
        corrector = open_model()
        for part, own in _preferences(corrector, rows, progress).items():
            scores.setdefault(part, {})[name] = own
        del corrector
        torch.cuda.empty_cache()
    items = [
        MeasuredAnswer(row["question"], row["answer"], context == 0, row["correction"], CONTEXTS[context])
        for row in rows
        for context in range(2)
    ]
    parts = {}
    for label, each in scores.items():
        shared = set.intersection(*(set(own) for own in each.values()))  # what every system has positions for
        matched = {place for place in shared if _alike(items[place])}
        parts[label] = _part(items, sorted(shared), each)
        if len(matched) >= 2:
            parts[f"{label}, answers of like length"] = _part(items, sorted(matched), each)
    return parts


def _alike(item: MeasuredAnswer) -> bool:
    short, long = sorted((len(item.answer), len(item.good)))
    return long <= ALIKE * short


def _part(items: Sequence[MeasuredAnswer], places: Sequence[int], scores: Mapping[str, Scores]) -> dict[str, Any]:
    some = [items[place] for place in places]
    renumbered = {name: {new: each[old] for new, old in enumerate(places)} for name, each in scores.items()}
    coin = dict.fromkeys(range(len(some)), 0.5)
    return part_figures(some, {ALIGNER: renumbered[ALIGNER], IDENTITY: coin, **renumbered}, error=False)


def _preferences(corrector: Corrector, rows: Sequence[Mapping[str, Any]], progress: Progress) -> dict[str, Scores]:
    """By part, 1 where the better answer is the likelier one, else 0: for each row and context, and for each row (in the place of
    its first context) with the log-probabilities of both contexts added."""
    pairs = []
    for row in rows:
        for context in (row["answer"], row["correction"]):
            pairs += [
                Pair(Origin("", 0), row["question"], context, text) for text in (row["correction"], row["answer"])
            ]
    shares = losses(corrector.model, corrector.encoder, corrector.template, pairs, progress)
    by_token, in_sum = {}, {}  # by how much the better one is likelier
    for place in range(len(pairs) // 2):
        if 2 * place in shares and 2 * place + 1 in shares:
            better, worse = ([*shares[2 * place + side].values()] for side in range(2))
            sums = [sum(share.nll for share in side) for side in (better, worse)]
            tokens = [sum(share.tokens for share in side) for side in (better, worse)]
            in_sum[place] = sums[1] - sums[0]
            by_token[place] = sums[1] / tokens[1] - sums[0] / tokens[0]
    leads = {"by token": by_token, "in sum": in_sum}
    apart = {name: {place: float(lead > 0) for place, lead in each.items()} for name, each in leads.items()}
    return {**{f"{name}, both contexts together": together(each) for name, each in leads.items()}, **apart}


def together(leads: Mapping[int, float]) -> dict[int, float]:
    """1 where the better answer leads over both contexts of a row (places 2n and 2n + 1), else 0. What copying does for the one
    answer in one context it does for the other in the other, so that it cancels, and a preference that is smaller shows."""
    return {
        place: float(leads[place] + leads[place + 1] > 0) for place in leads if place % 2 == 0 and place + 1 in leads
    }
