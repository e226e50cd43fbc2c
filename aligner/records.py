"""The record of the project, its origin, and the errors that a user can correct."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import regex

LONGEST = 1_000_000  # characters of a field; no model reads as many, and a larger one is a mistake
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
# A character that a reader can see. Not: spaces, controls, fillers, joiners, direction marks, blank Braille, marks without a
# letter, the places of lost or embedded things.
_SEEN = regex.compile(r"[^\s\p{Z}\p{Cc}\p{Cf}\p{DI}\p{M}\u2800\uFFFC\uFFFD]")


class UserError(Exception):
    """An error that the user can correct. Its text is one line: the finding and the remedy."""


def system_error(error: OSError) -> UserError:
    """A fault of the file system in one line: the path and what the system says."""
    return UserError(f"{error.filename or 'the system says'}: {error.strerror or error}.")


def require_at_least_one(**flags: float | None) -> None:
    """UserError naming the first flag whose number is below 1. None stands for a flag that was not given."""
    for name, value in flags.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}: it must be at least 1.")


class Origin(NamedTuple):
    """Where a record stands: a file (or data set id) and its row, counted from 1."""

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file} row {self.row}"


class Row(NamedTuple):
    """One row of a data file before anybody looked at its fields."""

    origin: Origin
    value: Any


@dataclass(frozen=True, slots=True)
class Correction:
    """One Q-A-C record: a question, a model's answer to it, and the better answer to learn (paper, section 2).

    feedback: an instruction for the correction, for prompts with a slot for it; mostly empty. prompt: the name of the prompt
    that its data set brings; empty where that leaves it to the run.
    """

    question: str
    answer: str
    correction: str
    origin: Origin = Origin("memory", 0)
    feedback: str = ""
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that a data set leaves out on purpose, with the reason, by which it is counted."""

    reason: str
    origin: Origin = Origin("memory", 0)


class DataError(UserError):
    """A row that cannot be used. `row` is counted from 1; None means the file as a whole."""

    def __init__(self, file: str, row: int | None, problem: str, remedy: str) -> None:
        self.file, self.row, self.problem, self.remedy = file, row, problem, remedy
        super().__init__(file, row, problem, remedy)

    def __str__(self) -> str:
        place = self.file if self.row is None else f"{self.file} row {self.row}"
        return f"{place}: {self.problem}. {self.remedy}"


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
