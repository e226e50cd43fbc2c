"""The nouns: a correction record, where it came from, why one was left out, and what can be wrong with one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class UserError(Exception):
    """Something the user can mend. Its text is one line: what was found and what to do about it."""


def system_error(error: OSError) -> UserError:
    """A fault of the file system in one line: the path and what the system says."""
    return UserError(f"{error.filename or 'the system says'}: {error.strerror or error}.")


class Origin(NamedTuple):
    """Where a record stands: a file (or data set id) and its row, counted from 1."""

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file} row {self.row}"


@dataclass(frozen=True, slots=True)
class Correction:
    """One Q-A-C record: a question, a model's answer to it, and the better answer to learn (paper, section 2).

    `feedback`: what the correction was asked to mind, for prompts with a slot for it; mostly empty.
    """

    question: str
    answer: str
    correction: str
    origin: Origin = Origin("memory", 0)
    feedback: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that a data set leaves out on purpose, and why; counted, never silent."""

    reason: str
    origin: Origin = Origin("memory", 0)


class DataError(UserError):
    """A row that cannot be used. `row` is counted from 1; None speaks of the file as a whole."""

    def __init__(self, file: str, row: int | None, problem: str, remedy: str) -> None:
        self.file, self.row, self.problem, self.remedy = file, row, problem, remedy
        super().__init__(file, row, problem, remedy)

    def __str__(self) -> str:
        place = self.file if self.row is None else f"{self.file} row {self.row}"
        return f"{place}: {self.problem}. {self.remedy}"
