"""`rated-json`: a question with several answers, each rated in objectives of one's own.

Fields: question, answers (a list of objects with text and ratings, which are numbers by objective). Source: this project.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aligner.records import Correction, Skipped
from aligner.training.datasets.preference import text_of
from aligner.training.datasets.rated import SOURCES, Pairing, records_of_ratings
from aligner.training.datasets.registry import register


@register("rated-json", template="objectives", sources=SOURCES)
def rated_json(
    row: Mapping[str, Any],
    *,
    pairs: str = "both",
    margin: float = 0.0,
    pairs_per_question: int = 6,
    equal_proportion: float = 0.0,
) -> list[Correction | Skipped]:
    """Pairs of the answers, each with the objectives in which the target is the better one."""
    answers = row["answers"]
    if not isinstance(answers, list) or not all(isinstance(each, Mapping) for each in answers):
        raise ValueError("'answers' is not a list of objects with text and ratings")
    if not all(isinstance(each["ratings"], Mapping) for each in answers):
        raise ValueError("'ratings' of an answer is not an object with a number by objective")
    pairing = Pairing(pairs, margin, pairs_per_question, equal_proportion > 0)
    rated = [(text_of(each, "text"), each["ratings"]) for each in answers]
    return records_of_ratings(text_of(row, "question"), rated, pairing)
