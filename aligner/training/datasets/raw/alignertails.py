"""`alignertails`: the extended data, aligner/alignertails on the hub (CC BY-NC 4.0), about 169,000 rows.

Configurations: default (all), empathy, general, safety, summary, reasoning; one split, train. Source: its card and file
list at 8e9dffc. Its column names are not in the card: where they are not question, answer and correction, the error names
those found, and `--columns question=...,answer=...,correction=...` takes them. One configuration: `alignertails::hub:#empathy`.
"""

from __future__ import annotations

from typing import Any

from aligner.records import Correction
from aligner.training.datasets.options import QAC, Columns
from aligner.training.datasets.registry import register


@register("alignertails", path="hub:aligner/alignertails@main")
def alignertails(row: dict[str, Any], *, columns: Columns = QAC) -> Correction:
    """The three fields, under the names that `--columns` gives."""
    return columns.record(row)
