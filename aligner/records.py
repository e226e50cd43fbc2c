"""The record of the project, its origin, and the errors that a user can correct."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


class UserError(Exception):
    """An error that the user can correct. Its text is one line: the finding and the remedy."""


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

    feedback: an instruction for the correction, for prompts with a slot for it; usually empty. objectives: names, whose
    sentences become the feedback when a run reads the record. prompt: the name of the prompt that its data set brings; empty
    where that leaves it to the run. prefix: what was said before, corrected, where the answer is the next sentence of a longer one.
    """

    question: str
    answer: str
    correction: str
    origin: Origin = Origin("memory", 0)
    feedback: str = ""
    objectives: tuple[str, ...] = ()
    prompt: str = ""
    prefix: str = ""


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
