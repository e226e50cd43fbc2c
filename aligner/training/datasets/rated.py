"""Rated answers -> records: the answer that is better in some objectives is the target, these stand in the prompt, the worse is
the answer (MetaAligner, section 3.1).

A longer answer is often rated better whatever the objective, so a rating is no proof that a text is what its objective says:
`length_ratios` tells how long the targets are, objective by objective.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from aligner.known_prompts import EQUAL
from aligner.records import Correction, Skipped

SOURCES = (Path(__file__),)  # what decides the records besides a formatter
NAMES = {  # what published ratings call an objective, and its name here
    "instruction_following": "instruction-following",
    "honesty": "honest",
    "truthfulness": "truthful",
    "helpfulness": "helpful",
    "correctness": "correct",
    "coherence": "coherent",
    "complexity": "complex",
    "verbosity": "verbose",
}


@dataclass(frozen=True)
class Pairing:
    """Which pairs of a question's answers become records.

    pairs: both (a record in each direction, with its own objectives) or majority (in that with more of them alone). margin: the
    least difference of a rating that counts. most: pairs of a question. equal: also those that are rated the same in some
    objectives, under the prompt of the stage of equal preference.
    """

    pairs: str
    margin: float = 0.0
    most: int = 6
    equal: bool = False


@dataclass(frozen=True)
class RatedAnswer:
    """An answer and its rating in each objective, higher is more of it."""

    text: str
    ratings: Mapping[str, float]


Direction = tuple[
    RatedAnswer, RatedAnswer, list[str]
]  # the worse answer, the better one, and the objectives in which it is


def records_of_ratings(
    question: str, rated: Iterable[tuple[str, Mapping[str, Any]]], pairing: Pairing
) -> list[Correction | Skipped]:
    """The records of a question, whose answers and ratings are as a row holds them: of its pairs of answers those that are rated
    furthest apart first, after the ratings that cannot be read."""
    answers, unreadable = [], list[Skipped]()
    for text, values in rated:
        ratings, others = read_ratings(values)
        answers.append(RatedAnswer(text, ratings))
        unreadable += others
    equal = _equal_pairs(question, answers, pairing.most) if pairing.equal else []
    return [*unreadable, *_better_pairs(question, answers, pairing), *equal]


def read_ratings(ratings: Mapping[str, Any]) -> tuple[dict[str, float], list[Skipped]]:
    """The ratings that are numbers (or the digits of one), by objective, and the others."""
    values: dict[str, float] = {}
    unreadable = []
    for name, rating in ratings.items():
        try:
            value = math.nan if isinstance(rating, bool) else float(rating)
        except (TypeError, ValueError):
            value = math.nan
        if math.isfinite(value):
            values[NAMES.get(name, name)] = value
        else:
            unreadable.append(Skipped(f"a rating of {NAMES.get(name, name)} that is no number ({rating!r})"))
    return values, unreadable


def _better_pairs(question: str, answers: Sequence[RatedAnswer], pairing: Pairing) -> list[Correction | Skipped]:
    """Pairs of which one is better in some objectives, and why the others are left out."""
    ranked = []  # how far a pair is apart, and its records
    for one, other in combinations(answers, 2):
        better, worse = _better_in(one, other, pairing.margin), _better_in(other, one, pairing.margin)
        apart = sum(abs(one.ratings[name] - other.ratings[name]) for name in (*better, *worse))
        ranked.append((apart, _records_of_pair(question, (other, one, better), (one, other, worse), pairing)))
    ranked.sort(key=lambda each: -each[0])
    kept = [record for _, records in ranked[: pairing.most] for record in records]
    return kept + [Skipped("a question has more pairs than --pairs_per_question")] * (len(ranked) - pairing.most)


def _records_of_pair(
    question: str, forth: Direction, back: Direction, pairing: Pairing
) -> list[Correction] | list[Skipped]:
    if forth[0].text.strip() == forth[1].text.strip():
        return [Skipped("two answers are the same text")]
    if not forth[2] and not back[2]:
        return [Skipped("two answers are rated the same")]
    directions = [forth, back]
    if pairing.pairs == "majority":
        if len(forth[2]) == len(back[2]):
            return [Skipped("each of two answers is better in as many objectives")]
        directions = [max(directions, key=lambda each: len(each[2]))]
    return [
        Correction(question, worse.text, better.text, objectives=tuple(objectives))
        for worse, better, objectives in directions
        if objectives
    ]


def _equal_pairs(question: str, answers: Sequence[RatedAnswer], most: int) -> list[Correction | Skipped]:
    """The earlier answer made of the later one, where both are rated the same in some objectives."""
    pairs: list[Correction | Skipped] = []
    for one, other in combinations(answers, 2):
        same = tuple(name for name, rating in one.ratings.items() if other.ratings.get(name) == rating)
        if same and one.text.strip() != other.text.strip():
            pairs.append(Correction(question, other.text, one.text, objectives=same, prompt=EQUAL.name))
    return pairs[:most]


def length_ratios(records: Iterable[Correction]) -> dict[str, tuple[int, float]]:
    """By objective: how many records name it, and the median of their targets' characters over their answers'."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for name in record.objectives:
            ratios[name].append(len(record.correction) / max(1, len(record.answer)))
    return {name: (len(each), median(each)) for name, each in sorted(ratios.items())}


def _better_in(one: RatedAnswer, other: RatedAnswer, margin: float) -> list[str]:
    both = [name for name in one.ratings if name in other.ratings]
    return [name for name in both if (apart := one.ratings[name] - other.ratings[name]) > 0 and apart >= margin]
