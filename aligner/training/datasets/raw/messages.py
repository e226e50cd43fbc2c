"""`messages`: OpenAI's chat rows, of supervised and of preference fine-tuning.

Columns: messages, a list with role and content whose last is the assistant's, which trains a prompt without {answer} alone; or
input (an object with messages), preferred_output and non_preferred_output, a list of one message each. System messages are the
upstream's and not shown to an Aligner; rows with tools (tool_calls, messages of a tool) are left out. Source: OpenAI's guides
to supervised and to direct preference fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aligner.records import Correction, Skipped
from aligner.training.datasets.preference import TOOLS, correction_of_chat
from aligner.training.datasets.registry import register


@register("messages")
def messages(row: Mapping[str, Any], *, multi_turn: bool = False) -> Correction | Skipped:
    """The output that is not preferred, corrected into the preferred one."""
    if "preferred_output" not in row:
        chats = [row["messages"]]
    elif isinstance(row["input"], Mapping):
        before, outputs = row["input"]["messages"], (row["preferred_output"], row["non_preferred_output"])
        if not all(isinstance(part, list) for part in (before, *outputs)):
            raise ValueError("the messages of 'input' or of an output are no list")
        chats = [[*before, *output] for output in outputs]
    else:
        raise ValueError("'input' is not an object with messages")
    if any(_calls_tools(message) for chat in chats if isinstance(chat, list) for message in chat):
        return Skipped(TOOLS)
    return correction_of_chat(chats[0], chats[1] if len(chats) > 1 else None, multi_turn)


def _calls_tools(message: Any) -> bool:
    return isinstance(message, Mapping) and bool(
        message.get("tool_calls") or message.get("function_call") or message.get("role") in ("tool", "function")
    )
