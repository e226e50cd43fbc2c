"""`restoration`: any file of good answers, each damaged in a known way, to be corrected back into the good one.

Rows: question, and the good answer as correction (or, where there is none, as answer). It is an exercise with a known answer: what
an Aligner learns from it is to take out rudeness, boasting, flattery, leaked particulars, repetition, typing errors, a refusal
before an answer, and to leave good answers alone; it is not alignment, and says nothing about facts. `--damage` names the kinds,
`--hold_back` what is kept for measuring: `phrases` (a quarter of every kind's) and whole kinds. The kinds are in damage.py, the
phrases in damage.yaml. Source: the rows are the user's own; the phrases were written for this project.
"""

from __future__ import annotations

from typing import Any

from aligner.records import Correction, Skipped
from aligner.training.datasets.damage import SOURCES, damage_plan, damaged
from aligner.training.datasets.options import QAC, Columns
from aligner.training.datasets.preference import text_of
from aligner.training.datasets.registry import register

SHORTEST = 20  # characters of a good answer


@register("restoration", sources=SOURCES, anew=True)
def restoration(
    row: dict[str, Any],
    *,
    columns: Columns = QAC,
    damage: str | None = None,
    hold_back: str | None = None,
    copy: int = 0,
) -> Correction | Skipped:
    """The damaged answer, corrected into the good one; of a third of the rows the good one, left alone. Taken again, a row
    is damaged in another way."""
    field = columns.correction if columns.correction in row or "answer" not in row else "answer"
    question, good = text_of(row, columns.question), text_of(row, field).strip()
    if len(good) < SHORTEST:
        return Skipped(f"the good answer has fewer than {SHORTEST} characters: nothing to damage")
    return Correction(question, damaged(question, good, damage_plan(damage, hold_back), copy=copy).text, good)
