"""`empathy-json`: the empathy fine-tune's rows, a JSON array of question, answer and correction, under its own prompt.

Source: the authors' code, raw/empathy.py. The paper's data (4,300 rows) are not published.
"""

from __future__ import annotations

from typing import Any

from aligner.records import Correction
from aligner.training.datasets.options import QAC, Columns
from aligner.training.datasets.registry import register


@register("empathy-json", template="empathy")
def empathy_json(row: dict[str, Any], *, columns: Columns = QAC) -> Correction:
    """The same fields as correction-json; the prompt asks for empathy."""
    return columns.record(row)
