"""A preference pair as a record: the rejected answer, to be corrected into the chosen one (paper, sections 1 and 2)."""

from __future__ import annotations

from typing import Any

from aligner.records import Correction, Skipped
from aligner.texts import is_blank

SEVERAL_TURNS = "a dialogue of several turns"
PARTED = "the two dialogues part before the last answer"


def correction_of_pair(question: str, rejected: str, chosen: str) -> Correction | Skipped:
    """The record of a pair; a pair that prefers nothing, or has nothing to prefer, is left out."""
    if any(is_blank(text or "") for text in (question, rejected, chosen)):
        return Skipped("the question or one of the answers is empty")
    if rejected.strip() == chosen.strip():
        return Skipped("chosen and rejected are the same text")
    return Correction(question, rejected, chosen)


def text_of(row: dict[str, Any], name: str) -> str:
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
