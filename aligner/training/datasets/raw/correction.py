"""`correction-json`: rows with the fields question, answer and correction, as in template-dataset.json."""

from __future__ import annotations

from typing import Any

from aligner.records import Correction
from aligner.training.datasets.registry import register


@register("correction-json")
def correction_json(row: dict[str, Any]) -> Correction:
    """Other fields may stand in a row; they are not read."""
    return Correction(row["question"], row["answer"], row["correction"])
