"""`sharegpt`: ShareGPT's dialogues, and LLaMA-Factory's preference rows in that form.

Columns: conversations, a list of messages with `from` and `value`; beside it chosen and rejected, one message each, or neither:
then the last message is the answer, which trains a prompt without {answer} alone. `system` is the upstream's and not read; rows
with calls of tools (`function_call`, `observation`) are left out, and so are rows with `kto_tag`, a verdict on one answer.
Source: LLaMA-Factory's data/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aligner.records import Correction, Skipped
from aligner.training.datasets.preference import TOOLS, UNPAIRED, correction_of_chat
from aligner.training.datasets.registry import register

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "system": "system",
}


@register("sharegpt")
def sharegpt(row: Mapping[str, Any], *, multi_turn: bool = False) -> Correction | Skipped:
    """The rejected answer, corrected into the chosen one."""
    if "kto_tag" in row:
        return Skipped(UNPAIRED)
    before = row["conversations"]
    if not isinstance(before, list):
        raise ValueError("'conversations' is not a list of messages")
    pair = [row["chosen"], row["rejected"]] if "chosen" in row else []
    messages = [_message(each) for each in (*before, *pair)]
    if any(message["role"] == "tool" for message in messages):
        return Skipped(TOOLS)
    if not pair:
        return correction_of_chat(messages, None, multi_turn)
    *before, chosen, rejected = messages
    return correction_of_chat([*before, chosen], [*before, rejected], multi_turn)


def _message(value: Any) -> dict[str, Any]:
    """A message with OpenAI's names. ValueError where it is none."""
    if not isinstance(value, Mapping) or not isinstance(value.get("value"), str):
        raise ValueError("a message has no 'from' and 'value'")
    return {"role": ROLES.get(str(value.get("from")).lower(), "tool"), "content": value["value"]}
