"""`aligner-20k`: the paper's published training data, aligner/aligner-20K on the hub (CC BY-NC 4.0).

Columns: question, answer, correction (text). One split, train, about 20,000 rows. Source: its card and
public code that loads it. No commit of it is known here: pin one with
`aligner-20k::hub:@COMMIT` (aligner.json has the commit that a run saw).
"""

from __future__ import annotations

from typing import Any

from aligner.records import Correction
from aligner.training.datasets.options import QAC, Columns
from aligner.training.datasets.registry import register


@register("aligner-20k", path="hub:aligner/aligner-20K@main")
def aligner_20k(row: dict[str, Any], *, columns: Columns = QAC) -> Correction:
    """As published, field by field."""
    return columns.record(row)
