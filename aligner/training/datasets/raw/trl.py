"""`trl`: TRL's preference and prompt-completion rows, standard (text) and conversational (lists of messages).

Columns: chosen and rejected, with `prompt` or without it (then what both begin with is the prompt, cut where TRL's
`extract_prompt` cuts it); or prompt and completion, which have no worse answer and train a prompt without {answer} alone. A
row with `label` (unpaired preference, KTO) has no better answer beside a worse one: left out. Where the dialogues hold the
prompt themselves, a `prompt` beside them is not read. Source: TRL's documentation, dataset formats (1.16).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aligner.records import Correction, Skipped
from aligner.training.datasets.preference import PARTED, UNPAIRED, correction_of_chat, correction_of_pair, text_of
from aligner.training.datasets.registry import register


@register("trl")
def trl(row: Mapping[str, Any], *, multi_turn: bool = False) -> Correction | Skipped:
    """The rejected answer, corrected into the chosen one."""
    if "label" in row:
        return Skipped(UNPAIRED)
    if "completion" in row:
        return _completion(row, multi_turn)
    if isinstance(row["chosen"], str):
        return _pair_of_texts(row)
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
            raise ValueError(f"'{name}' is neither text nor a list of messages")
    if isinstance(prompt, list):
        return correction_of_chat([*prompt, *chosen], [*prompt, *rejected], multi_turn)
    if isinstance(prompt, str) and [m.get("role") for m in chosen] == ["assistant"]:
        turn = [{"role": "user", "content": prompt}]
        return correction_of_chat([*turn, *chosen], [*turn, *rejected], multi_turn)
    return correction_of_chat(chosen, rejected, multi_turn)


def _pair_of_texts(row: Mapping[str, Any]) -> Correction | Skipped:
    chosen, rejected = text_of(row, "chosen"), text_of(row, "rejected")
    if "prompt" in row:
        return correction_of_pair(text_of(row, "prompt"), rejected.strip(), chosen.strip())
    same = next(
        (n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected))
    )
    same -= chosen[same - 1 : same] == " "  # TRL leaves the space in front of the answer to the answer
    if not chosen[:same].strip():
        return Skipped(PARTED)
    return correction_of_pair(chosen[:same].strip(), rejected[same:].strip(), chosen[same:].strip())


def _completion(row: Mapping[str, Any], multi_turn: bool) -> Correction | Skipped:
    if isinstance(row["completion"], str):
        return Correction(text_of(row, "prompt"), "", text_of(row, "completion").strip())
    prompt = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": text_of(row, "prompt")}]
    return correction_of_chat([*prompt, *row["completion"]], None, multi_turn)
