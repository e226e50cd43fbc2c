"""`ultrafeedback`: binarised preference pairs, HuggingFaceH4/ultrafeedback_binarized on the hub (MIT).

Columns read: prompt (text), chosen and rejected (lists of messages with role and content, the answer last). Splits
train_prefs (61,135 rows) and test_prefs for preferences. Source: its card at the pinned commit, whose rows were freed of
TruthfulQA's questions (word for word). Other copies name the set that a row comes from in a column `source`: rows of an
evaluation set are left out.
"""

from __future__ import annotations

from typing import Any

from aligner.records import Correction, Skipped
from aligner.training.datasets.preference import PARTED, SEVERAL_TURNS, correction_of_pair, messages_of, text_of
from aligner.training.datasets.registry import register

EVALUATION_SETS = ("truthful_qa",)


@register(
    "ultrafeedback",
    path="hub:HuggingFaceH4/ultrafeedback_binarized@3949bf5f8c17c394422ccfab0c31ea9c20bdeb85/train_prefs",
)
def ultrafeedback(row: dict[str, Any]) -> Correction | Skipped:
    """The rejected last message, corrected into the chosen one."""
    if row.get("source") in EVALUATION_SETS:
        return Skipped(f"its question is one of an evaluation set ({row['source']})")
    chosen, rejected = messages_of(row, "chosen"), messages_of(row, "rejected")
    if chosen[:-1] != rejected[:-1]:
        return Skipped(PARTED)
    if len(chosen) > 2:
        return Skipped(SEVERAL_TURNS)
    return correction_of_pair(text_of(row, "prompt"), rejected[-1], chosen[-1])
