"""Rows whose target is the answer in its own words: its beginning, all of it and more, a list, plainer words, or itself.

    python -m aligner.evaluation.measures.own_words --rows answers.jsonl --output own_words.jsonl --most 150

Answers of two models to a question differ in everything. An answer and its own beginning differ in length alone, and what was asked
for is all that tells the one target from the other: a text makes a row for every objective here, and one that asks for nothing.
`correction-json` trains on them, under the prompt `objectives`.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aligner.evaluation.measures.objectives import NOTHING
from aligner.evaluation.measures.plain_words import in_plain_words
from aligner.evaluation.measures.ratings import texts_by_question, write_made_rows
from aligner.evaluation.measures.text_scores import content_words, listed, words

SHARE = 0.45  # of an answer's words in its beginning, where its first sentence is no longer
ADDED = (0.25, 0.6)  # of an answer's words that are added to it, at least and at most
FEWEST_ADDED = 5  # words of a sentence that adds something
_SENTENCE = re.compile(r"""\S.*?(?:[.!?]+["')\]]*(?=\s|$)|$)""", re.MULTILINE)
FEWEST = 30  # words of a text: of a shorter one no beginning is an answer


def beginning(text: str) -> str | None:
    """The first whole sentences, up to 0.45 of the words, one at least; None where that leaves too little out, or of the text."""
    whole, kept = len(words(text)), None
    for sentence in _sentences(text):
        end = sentence.end()
        if kept is not None and len(words(text[:end])) > SHARE * whole:
            break
        kept = text[:end]
    return kept if kept is not None and 5 <= len(words(kept)) <= 0.6 * whole else None


def as_list(text: str) -> str | None:
    """Each sentence as an item of a list; None of a text that has items, or fewer than three sentences."""
    sentences = [sentence[0] for sentence in _sentences(text)]
    return None if len(sentences) < 3 or listed(text) else "\n".join(f"- {sentence}" for sentence in sentences)


def _sentences(text: str) -> list[re.Match[str]]:
    """The sentences; a line's end ends one, and a number of a list is none."""
    return [each for each in _SENTENCE.finditer(text) if len(words(each[0])) > 1]


def with_more(text: str, others: Sequence[str]) -> str | None:
    """The text and a paragraph out of another answer: its first sentences that have half their content words from the text at most.
    None where no other has a quarter of its words to add."""
    own, whole = content_words(text), len(words(text))
    for other in others:
        added, count = [], 0
        for sentence in _sentences(other):
            new, length = content_words(sentence[0]), len(words(sentence[0]))
            if length < FEWEST_ADDED or not new or len(new & own) > 0.5 * len(new):
                continue
            if count + length > ADDED[1] * whole:
                break
            added.append(sentence[0])
            count += length
        if count >= ADDED[0] * whole:
            return f"{text.rstrip()}\n\n{' '.join(added)}"
    return None


Target = Callable[[str, Sequence[str]], str | None]  # of a text and of the question's other ones
TARGETS: Mapping[str, Target] = {
    "concise": lambda text, _: beginning(text),
    "detailed": with_more,
    "list": lambda text, _: as_list(text),
    "readable": lambda text, _: in_plain_words(text),
    NOTHING: lambda text, _: text,
}


def own_words_rows(rows: Sequence[Mapping[str, Any]], most: Mapping[str, int | None]) -> list[dict[str, Any]]:
    """Rows of question, answer, correction and objectives, of each objective so many at most (None: all)."""
    texts = texts_by_question(rows, FEWEST)
    each = [
        (question, text, [other for other in own if other != text]) for question, own in texts.items() for text in own
    ]
    random.Random(0).shuffle(each)
    made = []
    for objective, count in most.items():
        targets = [(question, text, TARGETS[objective](text, others)) for question, text, others in each]
        asked = [] if objective == NOTHING else [objective]
        made += [
            {"question": question, "answer": text, "correction": target, "objectives": asked}
            for question, text, target in targets
            if target
        ][:count]
    return made


def main(arguments: list[str]) -> int:
    """Read, make, write."""
    return write_made_rows(
        arguments,
        __doc__ or "",
        "own_words",
        "correction-json, to be trained on with --prompt_template objectives",
        lambda rows, most: own_words_rows(rows, dict.fromkeys(TARGETS, most)),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
