"""Systems that cannot help: a measure that one of them wins is fooled.

Each text control is a function of a question and its answer; what needs the Aligner's corrections or a model stands in measure.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from aligner.refusals import REFUSALS

SHORT = 6  # words that are left of an answer cut short
IDENTITY, SHUFFLED_TEXTS, BASE, SHUFFLED_ALIGNER = (
    "the answers left alone",
    "its corrections, shuffled among questions",
    "the untrained base",
    "an Aligner trained on shuffled corrections",
)
SHUFFLED_OBJECTIVES = "an Aligner trained on shuffled objectives"
SPELLING = "a spelling corrector"
Rewrite = Callable[[str, str], str]
TEXT_CONTROLS: dict[str, Rewrite] = {
    IDENTITY: lambda question, answer: answer,
    "silence": lambda question, answer: "",
    '"No."': lambda question, answer: "No.",
    "the question again": lambda question, answer: question,
    '"No, " and the question again': lambda question, answer: f"No, {question}",
    "the answer cut short": lambda question, answer: " ".join(answer.split()[:SHORT]),
}
REFUSE: dict[str, Rewrite] = {"always a refusal": lambda question, answer: REFUSALS[0]}


def shuffled(texts: Sequence[str], questions: Sequence[str], seed: int = 0) -> list[str]:
    """The texts dealt out anew so that each comes from another question wherever there is another one.

    By a rotation of the questions in a seeded order: of every question's texts the next question's are taken, in turn.
    """
    order = list(dict.fromkeys(questions))
    random.Random(seed).shuffle(order)
    place = {question: number for number, question in enumerate(order)}
    own: dict[str, list[str]] = {}
    for question, text in zip(questions, texts, strict=True):
        own.setdefault(question, []).append(text)
    taken: dict[str, int] = {}
    dealt = []
    for question in questions:
        source = own[order[(place[question] + 1) % len(order)]]
        dealt.append(source[taken.get(question, 0) % len(source)])
        taken[question] = taken.get(question, 0) + 1
    return dealt


def spelling_corrector() -> Rewrite | None:
    """A spelling corrector from the package `autocorrect`, or None where it is not installed."""
    try:
        from autocorrect import Speller
    except ImportError:
        return None
    speller = Speller()
    return lambda question, answer: str(speller(answer))
