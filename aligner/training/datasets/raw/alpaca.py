"""`alpaca`: Alpaca's rows, and LLaMA-Factory's preference rows in that form.

Columns: instruction and, where it is not empty, input (both make the question); output, which trains a prompt without {answer}
alone, or chosen and rejected; history, earlier pairs of question and answer. `system` is the upstream's and not read; rows with
`kto_tag`, a verdict on one answer, are left out. Without a path: tatsu-lab/alpaca on the hub (CC BY-NC 4.0).
Source: tatsu-lab/stanford_alpaca; LLaMA-Factory's data/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aligner.records import Correction, Skipped
from aligner.training.datasets.preference import UNPAIRED, correction_of_chat, text_of
from aligner.training.datasets.registry import register


@register("alpaca", path="hub:tatsu-lab/alpaca")
def alpaca(row: Mapping[str, Any], *, multi_turn: bool = False) -> Correction | Skipped:
    """The rejected answer, corrected into the chosen one."""
    if "kto_tag" in row:
        return Skipped(UNPAIRED)
    more = row.get("input") or ""
    question = text_of(row, "instruction") + (f"\n\n{more}" if isinstance(more, str) and more.strip() else "")
    before = [*_history(row.get("history") or []), {"role": "user", "content": question}]
    chosen, rejected = ("chosen", "rejected") if "chosen" in row else ("output", "")
    better = [*before, {"role": "assistant", "content": text_of(row, chosen)}]
    worse = [*before, {"role": "assistant", "content": text_of(row, rejected)}] if rejected else None
    return correction_of_chat(better, worse, multi_turn)


def _history(pairs: Any) -> list[dict[str, Any]]:
    """Earlier turns as messages. ValueError where they are no pairs of texts."""
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError("'history' is not a list of pairs")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]
