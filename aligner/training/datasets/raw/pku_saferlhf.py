"""`pku-saferlhf`: preference pairs with two judgements, PKU-Alignment/PKU-SafeRLHF on the hub (CC BY-NC 4.0).

Columns read: prompt, response_0, response_1 (text), better_response_id (helpfulness) and safer_response_id (harmlessness),
each 0 or 1. Splits train and test; configurations default, alpaca-7b, alpaca2-7b, alpaca3-8b. Source: its card and data at
the pinned commit. The paper does not say which judgement decides (`--prefer`).
"""

from __future__ import annotations

from typing import Any

from aligner.records import Correction, Skipped
from aligner.training.datasets.preference import correction_of_pair
from aligner.training.datasets.registry import register


@register("pku-saferlhf", path="hub:PKU-Alignment/PKU-SafeRLHF@d79b19b2043c4b168d8d64c61ef4ba4ed1ffe2c0")
def pku_saferlhf(row: dict[str, Any], *, prefer: str = "better") -> Correction | Skipped:
    """The response that is not preferred, corrected into the preferred one."""
    chosen = int(row[f"{prefer}_response_id"])
    return correction_of_pair(row["prompt"], row[f"response_{1 - chosen}"], row[f"response_{chosen}"])
