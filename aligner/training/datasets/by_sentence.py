"""Question, answer, correction -> a record for each sentence of the answer, for an Aligner that corrects while the upstream speaks.

A record says: behind this prefix (of the correction) the upstream says this sentence, and this is what belongs there. The sentences
of answer and correction are paired in their order by their similarity, and one that stands in the place of one is its correction
however much they differ. What only the correction has goes with the next pair, at the end with the last sentence; what only the
answer has is answered by what comes next in the correction, or by its end, an empty text. Where several differ on either side,
nobody can say which answers which, and those of the answer are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from rapidfuzz.distance import Indel
from rapidfuzz.process import cdist

from aligner.prompts import PromptTemplate
from aligner.records import Correction, Skipped, UserError
from aligner.sentences import require_splitter, split_sentences

LEAST = 0.5  # similarity of two sentences of which one may be the other's correction, 0 to 1
LEFT_OUT = "a sentence of the answer that can be paired with none of the correction's"
Pair = tuple[int, int]  # the place of a sentence in the answer, and of its correction


def check_sentences(template: PromptTemplate) -> None:
    """UserError where records of sentences cannot be made, or the prompt does not show all of one."""
    require_splitter()
    for slot in ("prefix", "answer"):
        if slot not in template.slots:
            raise UserError(
                f"--sentences: the prompt '{template.name}' has no {{{slot}}}. Leave --prompt_template out, or write it there."
            )


def sentence_records(record: Correction, prompt: str) -> Iterator[Correction | Skipped]:
    """The records of an answer's sentences, in their order, and those that are left out."""
    answer, correction = split_sentences(record.answer), split_sentences(record.correction)
    for sentence, span in zip(answer, targets(answer, correction), strict=True):
        if span is None:
            yield Skipped(LEFT_OUT, record.origin)
            continue
        start, end = span
        prefix, target = "".join(correction[:start]).strip(), "".join(correction[start:end]).strip()
        yield replace(record, answer=sentence.strip(), correction=target, prefix=prefix, prompt=prompt)


def targets(answer: Sequence[str], correction: Sequence[str]) -> list[Pair | None]:
    """For each sentence of the answer where what belongs in its place begins and ends among those of the correction."""
    spans: list[Pair | None] = []
    edges = [(-1, -1), *paired(answer, correction), (len(answer), len(correction))]
    for (i, j), (i_next, j_next) in pairwise(edges):
        taken_out, put_in = i_next - i - 1, j_next - j - 1
        spans += [None if put_in else (j + 1, min(j_next + 1, len(correction)))] * taken_out
        if i_next < len(answer):
            end = len(correction) if i_next == len(answer) - 1 else j_next + 1
            spans.append((j_next if taken_out else j + 1, end))
    return spans


def paired(answer: Sequence[str], correction: Sequence[str]) -> list[Pair]:
    """Which sentences belong together: in order, with the greatest sum of similarities, none below LEAST; then those that stand
    alone between two pairs, or between a pair and an end."""
    pairs = _most_alike(answer, correction)
    edges = [(-1, -1), *pairs, (len(answer), len(correction))]
    alone = [(i + 1, j + 1) for (i, j), after in pairwise(edges) if after == (i + 2, j + 2)]
    return sorted([*pairs, *alone])


def _most_alike(answer: Sequence[str], correction: Sequence[str]) -> list[Pair]:
    before, after = ([each.strip() for each in side] for side in (answer, correction))
    alike = np.asarray(cdist(before, after, scorer=Indel.normalized_similarity, dtype=np.float64))
    best = np.zeros((len(before) + 1, len(after) + 1))  # [i, j]: of the first i and the first j sentences
    for i in range(len(before)):
        for j in range(len(after)):
            together = best[i, j] + alike[i, j] if alike[i, j] >= LEAST else 0.0
            best[i + 1, j + 1] = max(best[i, j + 1], best[i + 1, j], together)
    pairs, i, j = list[Pair](), len(before), len(after)
    while i and j:
        if best[i, j] == best[i - 1, j]:
            i -= 1
        elif best[i, j] == best[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]
