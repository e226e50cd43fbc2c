"""`correction-json`: rows with the fields question, answer and correction, as in template-dataset.json.

Source: the authors' code, raw/correction.py. A field `feedback` says what the correction was asked to mind, for prompts with a
slot for it. Other fields may stand in a row; they are not read.
"""

from __future__ import annotations

from typing import Any

from aligner.records import Correction
from aligner.training.datasets.options import QAC, Columns
from aligner.training.datasets.registry import register


@register("correction-json")
def correction_json(row: dict[str, Any], *, columns: Columns = QAC) -> Correction:
    """`--columns` names the fields where they are called otherwise."""
    return columns.record(row)
