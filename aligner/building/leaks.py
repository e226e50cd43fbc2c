"""Questions of an evaluation are not trained on: equal ones, nearly equal ones, those inside a longer question (paper, FAQ 3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from aligner.building.config import LeaksConfig
from aligner.building.near import NearIndex
from aligner.building.read_questions import questions_in
from aligner.building.stage import Row, Sieve
from aligner.questions import question_key, tokens
from aligner.records import UserError

SHORTEST = 3  # words of a question that is looked for inside others
EXACT, INSIDE, NEAR, MEANING = (
    "in an evaluation set",
    "holds a question of an evaluation set",
    "nearly a question of an evaluation set",
    "means a question of an evaluation set",
)


@dataclass
class Runs:
    """Runs of words of many questions. ngram: words of a run; a shorter question is one run as a whole."""

    ngram: int
    containment: float
    sizes: list[int] = field(default_factory=list)  # how many different runs each question has
    known: dict[tuple[str, ...], list[int]] = field(default_factory=dict)
    lengths: set[int] = field(default_factory=set)

    def add(self, question: str) -> None:
        """Know one more question; one of fewer than three words is never looked for inside another."""
        words = tokens(question)
        size = min(self.ngram, len(words))
        runs = set(_runs(words, size)) if size >= SHORTEST else set()
        for run in runs:
            self.known.setdefault(run, []).append(len(self.sizes))
            self.lengths.add(size)
        self.sizes.append(len(runs))

    def inside(self, question: str) -> int | None:
        """The place of a known question of which enough runs are in this one, or None."""
        words, shared = tokens(question), Counter[int]()
        for size in self.lengths:
            for run in set(_runs(words, size)):
                shared.update(self.known.get(run, ()))
        enough = [place for place, count in shared.items() if count >= self.containment * self.sizes[place]]
        return min(enough, default=None)


def _runs(words: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[at : at + size]) for at in range(len(words) - size + 1))


class LeakScreen:
    """The questions of evaluation sets, ready to be recognised."""

    def __init__(self, questions: Sequence[str], config: LeaksConfig) -> None:
        self.questions = list({question_key(each): each for each in questions}.values())
        self._exact = {question_key(each): place for place, each in enumerate(self.questions)}
        self._runs = Runs(config.ngram, config.containment)
        self._near = None if config.near is None else NearIndex(config.near, strict=True)
        for question in self.questions:
            self._runs.add(question)
            if self._near:
                self._near.add(question)

    def leak(self, question: str) -> tuple[str, str] | None:
        """How a question leaks, and the evaluation's question; None where it does not."""
        if (place := self._exact.get(question_key(question))) is not None:
            return EXACT, self.questions[place]
        if (place := self._runs.inside(question)) is not None:
            return INSIDE, self.questions[place]
        near = self._near.like(question) if self._near else []
        return (NEAR, self.questions[near[0].first]) if near else None


def screen_leaks(rows: Sequence[Row], config: LeaksConfig) -> Sieve:
    """The rows whose questions are in no evaluation set."""
    sieve = Sieve(len(rows))
    if not config.sets:
        sieve.kept = list(rows)
        return sieve
    questions = [question for spec in config.sets for question in evaluation_questions(spec)]
    screen = LeakScreen(questions, config)
    by_embedding = by_meaning(rows, screen.questions, config) if config.model else {}
    for place, row in enumerate(rows):
        leak = screen.leak(row["question"]) or by_embedding.get(place)
        if leak:
            sieve.drop(row, leak[0], leak[1])
        else:
            sieve.keep(row)
    sieve.notes = {"evaluation questions": len(screen.questions), "compared by meaning": bool(config.model)}
    return sieve


def evaluation_questions(spec: str) -> list[str]:
    """The questions of an evaluation set. UserError where there is none."""
    questions = [row["question"] for row in questions_in(spec) if "question" in row]
    if not questions:
        raise UserError(f"leaks.sets: {spec} has no questions. Check the path.")
    return questions


def by_meaning(rows: Sequence[Row], questions: Sequence[str], config: LeaksConfig) -> dict[int, tuple[str, str]]:
    """Places of rows whose embedding is as near to a question's as `similarity` says."""
    from aligner.building.embeddings import nearest  # torch, which only this needs

    near = nearest([row["question"] for row in rows], questions, config.model or "")
    return {
        place: (MEANING, f"{questions[other]} ({cosine:.3f})")
        for place, (other, cosine) in enumerate(near)
        if cosine >= config.similarity
    }
