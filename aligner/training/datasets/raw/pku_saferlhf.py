"""`pku-saferlhf`: preference pairs with two judgements, PKU-Alignment/PKU-SafeRLHF on the hub (CC BY-NC 4.0).

Columns read: prompt, response_0, response_1 (text), better_response_id (helpfulness) and safer_response_id (harmlessness),
each 0 or 1. Splits train and test; configurations default, alpaca-7b, alpaca2-7b, alpaca3-8b. Source: its card and data at
the pinned commit. The paper does not say which judgement decides (`--prefer`).
"""

from __future__ import annotations

from typing import Any

from aligner.records import Correction, Skipped
from aligner.training.datasets.preference import correction_of_pair, text_of
from aligner.training.datasets.registry import register


@register("pku-saferlhf", path="hub:PKU-Alignment/PKU-SafeRLHF@d79b19b2043c4b168d8d64c61ef4ba4ed1ffe2c0")
def pku_saferlhf(row: dict[str, Any], *, prefer: str = "better") -> Correction | Skipped:
    """The response that is not preferred, corrected into the preferred one."""
    chosen = row[f"{prefer}_response_id"]
    if chosen not in (0, 1) or not isinstance(chosen, int) or isinstance(chosen, bool):
        raise ValueError(f"'{prefer}_response_id' is {chosen!r} and neither 0 nor 1")
    question, *responses = (text_of(row, name) for name in ("prompt", "response_0", "response_1"))
    return correction_of_pair(question, responses[1 - chosen], responses[chosen])
