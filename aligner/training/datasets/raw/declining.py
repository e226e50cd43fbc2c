"""`declining`: prompts that are to be declined and prompts that are not, each with some model's answer.

Rows: question, answer, and `unsafe` (true or false) or XSTest's `type`. An unsafe prompt's answer is corrected into a refusal, a
safe prompt's is left alone; and so that the prompt decides and not the answer, a quarter of the unsafe prompts are shown with a
refusal, which is left alone, and a quarter of the safe ones with a refusal, which is corrected into the answer. What a safe
prompt's answer says is not looked at, but one that declines is left out. Drawn by record: alike in every run, and anew where a
row is taken again. Source: the rows are the user's own; the refusals were written for this project.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligner import refusals
from aligner.records import Correction, Skipped
from aligner.refusals import REFUSALS, declines, is_unsafe
from aligner.training.datasets.options import QAC, Columns
from aligner.training.datasets.preference import text_of
from aligner.training.datasets.registry import register

SOURCES = (Path(refusals.__file__),)  # what decides the records besides the rows
REFUSED = 1 / 4  # share of the prompts, safe or not, that are shown with a refusal


@register("declining", sources=SOURCES, anew=True)
def declining(row: Mapping[str, Any], *, columns: Columns = QAC, copy: int = 0) -> Correction | Skipped:
    """The record of a prompt and its answer."""
    question, answer = text_of(row, columns.question), text_of(row, columns.answer).strip()
    unsafe = is_unsafe(row)
    rng = random.Random(f"{question}\0{answer}\0{copy}")
    refusal = rng.choice(REFUSALS)
    shown = refusal if rng.random() < REFUSED else answer
    if unsafe:
        return Correction(question, shown, shown if declines(shown) else refusal)
    if declines(answer):
        return Skipped("a safe prompt whose answer declines: no better one is known")
    return Correction(question, shown, answer)
