"""`hh-rlhf`: helpful and harmless preference pairs, Anthropic/hh-rlhf on the hub (MIT).

Columns: chosen and rejected, each a whole dialogue as text with turns that begin "\\n\\nHuman: " and "\\n\\nAssistant: "; the
two differ in their last answer. Splits train and test. Source: its card at the pinned commit. An Aligner is trained on one
question and one answer (paper, section 6), so dialogues of several turns are counted and left out unless `--multi_turn`
takes them, the dialogue before the last answer being the question. Some replies are a human's turn ("Assistant: Human: ...", or a
dialogue that ends on one) and some have no word ("?", "..."): left out.
"""

from __future__ import annotations

import re
from typing import Any

from aligner.records import Correction, Skipped
from aligner.training.datasets.preference import PARTED, SEVERAL_TURNS, correction_of_pair, text_of
from aligner.training.datasets.registry import register

HUMAN, ASSISTANT = "\n\nHuman: ", "\n\nAssistant: "
HUMAN_TURN = re.compile(r"(?:^\s*|\n|\s\s)Human:")
WORD = re.compile(r"[^\W_]")


@register("hh-rlhf", path="hub:Anthropic/hh-rlhf@09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa")
def hh_rlhf(row: dict[str, Any], *, multi_turn: bool = False) -> Correction | Skipped:
    """The rejected last answer, corrected into the chosen one."""
    before, _, chosen = text_of(row, "chosen").rpartition(ASSISTANT.rstrip())
    other, _, rejected = text_of(row, "rejected").rpartition(ASSISTANT.rstrip())
    if before.strip() != other.strip():
        return Skipped(PARTED)
    before = "\n\n" + before.strip()
    turns = before.count(HUMAN.rstrip())
    if turns == 0:
        return Skipped("no human turn before the last answer")
    if turns > 1 and not multi_turn:
        return Skipped(f"{SEVERAL_TURNS} (--multi_turn takes them)")
    for reply in (chosen, rejected):
        if HUMAN_TURN.search(reply):
            return Skipped("a reply is a human's turn, or ends in one")
        if reply.strip() and not WORD.search(reply):
            return Skipped("a reply without a word")
    question = before.strip() if turns > 1 else before.strip().removeprefix(HUMAN.strip())
    return correction_of_pair(question.strip(), rejected.strip(), chosen.strip())
