"""`pku-saferlhf-rated`: pairs with both verdicts as objectives, PKU-Alignment/PKU-SafeRLHF on the hub (CC BY-NC 4.0).

Columns read as by `pku-saferlhf`: prompt, response_0, response_1, better_response_id (helpful) and safer_response_id (harmless).
Source: its card and data at the pinned commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aligner.records import Correction, Skipped
from aligner.training.datasets.preference import text_of
from aligner.training.datasets.rated import SOURCES, Pairing, records_of_ratings
from aligner.training.datasets.registry import REGISTERED, register

VERDICTS = {"helpful": "better_response_id", "harmless": "safer_response_id"}


@register("pku-saferlhf-rated", path=REGISTERED["pku-saferlhf"].path, template="objectives", sources=SOURCES)
def pku_saferlhf_rated(
    row: Mapping[str, Any], *, pairs: str = "both", equal_proportion: float = 0.0
) -> list[Correction | Skipped]:
    """The pair in each direction with the verdicts that prefer its target."""
    chosen = {name: row[column] for name, column in VERDICTS.items()}
    for name, value in chosen.items():
        if value not in (0, 1) or not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"'{VERDICTS[name]}' is {value!r} and neither 0 nor 1")
    rated = [
        (text_of(row, f"response_{number}"), {name: float(chosen[name] == number) for name in chosen})
        for number in (0, 1)
    ]
    return records_of_ratings(text_of(row, "prompt"), rated, Pairing(pairs, 0.0, 1, equal_proportion > 0))
