"""`helpsteer2`: two answers a question with people's five ratings, nvidia/HelpSteer2 on the hub (CC BY 4.0).

Columns read: prompt, response, helpfulness, correctness, coherence, complexity, verbosity (0 to 4); rows of one prompt stand
together. Prompts of several turns ('<extra_id_1>' between them) are left out. Source: its card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aligner.records import Correction, Skipped
from aligner.training.datasets.preference import SEVERAL_TURNS, text_of
from aligner.training.datasets.rated import SOURCES, Pairing, records_of_ratings
from aligner.training.datasets.registry import register

RATED = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
TURN = "<extra_id_1>"


@register("helpsteer2", path="hub:nvidia/HelpSteer2", template="objectives", sources=SOURCES, together="prompt")
def helpsteer2(
    rows: Sequence[Mapping[str, Any]],
    *,
    pairs: str = "both",
    margin: float = 0.0,
    pairs_per_question: int = 6,
    equal_proportion: float = 0.0,
) -> list[Correction | Skipped] | Skipped:
    """Pairs of a prompt's answers; `rows` are those of one prompt."""
    if TURN in (question := text_of(rows[0], "prompt")):
        return Skipped(SEVERAL_TURNS)
    if len(rows) < 2:
        return Skipped("a question has one answer alone")
    pairing = Pairing(pairs, margin, pairs_per_question, equal_proportion > 0)
    rated = [(text_of(row, "response"), {name: row[name] for name in RATED}) for row in rows]
    return records_of_ratings(question, rated, pairing)
