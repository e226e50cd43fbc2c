"""`firefly`: Chinese instructions and answers, YeungNLP/firefly-train-1.1M on the hub, for a prompt without {answer}.

Columns read: input, target. Source: the authors' code, raw/firefly.py.
"""

from __future__ import annotations

from typing import Any

from aligner.records import Correction
from aligner.training.datasets.preference import text_of
from aligner.training.datasets.registry import register


@register("firefly", path="hub:YeungNLP/firefly-train-1.1M")
def firefly(row: dict[str, Any]) -> Correction:
    """The target, learned from the input alone."""
    return Correction(text_of(row, "input"), "", text_of(row, "target"))
