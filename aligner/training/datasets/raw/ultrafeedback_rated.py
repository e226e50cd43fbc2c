"""`ultrafeedback-rated`: four answers a question with GPT-4's four ratings, openbmb/UltraFeedback on the hub (MIT).

Columns read: instruction, source, completions (response, annotations: instruction_following, honesty, truthfulness and
helpfulness, each with Rating, digits or 'N/A'). Rows whose source is an evaluation set are left out. Source: its card.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aligner.records import Correction, Skipped
from aligner.training.datasets.preference import text_of
from aligner.training.datasets.rated import SOURCES, Pairing, records_of_ratings
from aligner.training.datasets.raw.ultrafeedback import EVALUATION_SETS
from aligner.training.datasets.registry import register

RATED = ("instruction_following", "honesty", "truthfulness", "helpfulness")


@register("ultrafeedback-rated", path="hub:openbmb/UltraFeedback", template="objectives", sources=SOURCES)
def ultrafeedback_rated(
    row: Mapping[str, Any],
    *,
    pairs: str = "majority",
    margin: float = 0.0,
    pairs_per_question: int = 6,
    equal_proportion: float = 0.0,
) -> list[Correction | Skipped] | Skipped:
    """Pairs of a question's answers."""
    if row.get("source") in EVALUATION_SETS:
        return Skipped(f"its question is one of an evaluation set ({row['source']})")
    pairing = Pairing(pairs, margin, pairs_per_question, equal_proportion > 0)
    rated = [
        (text_of(each, "response"), {name: each["annotations"][name]["Rating"] for name in RATED})
        for each in row["completions"]
    ]
    return records_of_ratings(text_of(row, "instruction"), rated, pairing)
