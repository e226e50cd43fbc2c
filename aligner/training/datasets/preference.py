"""A preference pair as a record: the rejected answer, to be corrected into the chosen one (paper, sections 1 and 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aligner.chat_api.dialogue import question_and_answer
from aligner.records import Correction, Skipped
from aligner.texts import is_blank

SEVERAL_TURNS = "a dialogue of several turns"
PARTED = "the two dialogues part before the last answer"
TOOLS = "it calls tools"
UNPAIRED = "a verdict on one answer, without a better one beside it"


def correction_of_pair(question: str, rejected: str, chosen: str) -> Correction | Skipped:
    """The record of a pair; a pair that prefers nothing, or has nothing to prefer, is left out."""
    if any(is_blank(text or "") for text in (question, rejected, chosen)):
        return Skipped("the question or one of the answers is empty")
    if rejected.strip() == chosen.strip():
        return Skipped("chosen and rejected are the same text")
    return Correction(question, rejected, chosen)


def correction_of_chat(better: Any, worse: Any | None, multi_turn: bool) -> Correction | Skipped:
    """The record of a chat that ends with the better answer, and of the same chat with the worse, or of the first alone: then
    there is no answer to correct. The question is the dialogue before it, as `aligner serve` builds it.

    Dialogues of several turns are left out unless `multi_turn` takes them. ValueError where one is no such chat.
    """
    questions, chosen = question_and_answer(better)
    if len(questions) > 1 and not multi_turn:
        return Skipped(f"{SEVERAL_TURNS} (--multi_turn takes them)")
    if worse is None:
        return Correction(questions[0], "", chosen)
    others, rejected = question_and_answer(worse)
    return Skipped(PARTED) if others[0] != questions[0] else correction_of_pair(questions[0], rejected, chosen)


def text_of(row: Mapping[str, Any], name: str) -> str:
    """A field that must be text. KeyError or ValueError otherwise."""
    if not isinstance(row[name], str):
        raise ValueError(f"'{name}' is {type(row[name]).__name__} and not text")
    return str(row[name])


def messages_of(row: dict[str, Any], name: str) -> list[str]:
    """The texts of a field that must be a list of messages, each with role and content. KeyError or ValueError otherwise."""
    value = row[name]
    if not isinstance(value, list) or not value or not all(isinstance(m, dict) for m in value):
        raise ValueError(f"'{name}' is not a list of messages")
    texts = [message.get("content") for message in value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"a message of '{name}' has no content")
    return texts
