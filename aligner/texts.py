"""What a field's text may be: not missing, not blank, no NUL, no half of a surrogate pair, not endless."""

from __future__ import annotations

import re
from typing import Any

import regex

from aligner.records import DataError, Origin

LONGEST = 1_000_000  # characters of a field; no model reads as many, and a larger one is a mistake
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
# A character that a reader can see. Not: spaces, controls, fillers, joiners, direction marks, blank Braille, marks without a
# letter, the places of lost or embedded things.
_SEEN = regex.compile(r"[^\s\p{Z}\p{Cc}\p{Cf}\p{DI}\p{M}\u2800\uFFFC\uFFFD]")
# Fenced code, with its fences; an open block lasts to the end.
FENCE = regex.compile(r"^([ \t]*)(`{3,}|~{3,})[^\n]*\n.*?(?:^[ \t]*\2[`~]*[ \t]*$|\Z)", regex.DOTALL | regex.MULTILINE)


def text_fault(origin: Origin, field: str, value: Any, may_be_empty: bool = False) -> DataError | None:
    """Why a field's value is no text that a model can be given, or None."""
    if not isinstance(value, str):
        return DataError(*origin, f"'{field}' is {kind_of(value)} and not text", "Write text in quotation marks")
    if is_blank(value) and not (may_be_empty and not value.strip()):
        unseen = f": it holds only {_code_points(value)}, which nobody can see" if value.strip() else ""
        return DataError(*origin, f"'{field}' is empty{unseen}", "Remove the row")
    if bad := _NO_TEXT.search(value):
        what = "a NUL character" if bad[0] == "\0" else "half a surrogate pair, which is no text"
        return DataError(*origin, f"'{field}' holds {what}, at character {bad.start() + 1:,}", "Remove the character")
    if len(value) > LONGEST:
        return DataError(*origin, f"'{field}' has {len(value):,} characters", f"Cut it: at most {LONGEST:,} are read")
    return None


def is_blank(text: str) -> bool:
    """Whether a text holds nothing that a reader could see: it is empty, or spaces, or zero-width and filling characters."""
    return _SEEN.search(text) is None


def _code_points(text: str) -> str:
    """The different characters of a text that are no spaces, as U+200B."""
    names = [f"U+{ord(c):04X}" for c in dict.fromkeys(text) if not c.isspace()]
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def kind_of(value: Any) -> str:
    """What a value of JSON is, for a reader: an object, a list, text, a number, ..."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
