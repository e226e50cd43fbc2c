"""The flags that data sets read: field names, which judgement decides, dialogues or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from aligner.objectives import split_objectives
from aligner.prompts import SLOTS
from aligner.records import Correction, UserError
from aligner.training.datasets.damage import damage_plan

OPTIONAL = ("feedback", "prefix")  # roles that no row needs to have
ROLES = ("question", "answer", "correction", *(slot for slot in SLOTS if slot not in ("question", "answer")))


@dataclass(frozen=True)
class Columns:
    """The names of the fields in a row, by their role: the slots of a prompt, and the correction.

    feedback and prefix: may be missing in a row under their usual names, and must be there under others; '' if no field has that
    role.
    Iterating gives the three that every record has. UserError where one field has two roles.
    """

    question: str = "question"
    answer: str = "answer"
    correction: str = "correction"
    feedback: str = "feedback"
    prefix: str = "prefix"

    def __post_init__(self) -> None:
        roles: dict[str, str] = {}
        for role in ROLES:
            name = getattr(self, role)
            if name in roles:
                remedy = f"give that role another field, or none with '{role}='" if role in OPTIONAL else "Name another"
                raise UserError(f"--columns: the field '{name}' would be both {roles[name]} and {role}: {remedy}.")
            roles |= {name: role} if name else {}

    def __iter__(self) -> Iterator[str]:
        return iter((self.question, self.answer, self.correction))

    def record(self, row: Mapping[str, Any]) -> Correction:
        """The record of a row; its feedback, or else its `objectives`. KeyError where a field is missing."""
        feedback, prefix = (self._optional(row, role) for role in OPTIONAL)
        question, answer, correction = (row[name] for name in self)
        objectives = () if feedback or not self.feedback else split_objectives(row.get("objectives"))
        return Correction(
            question,
            answer,
            correction,
            feedback="" if feedback is None else feedback,
            objectives=objectives,
            prefix="" if prefix is None else prefix,
        )

    def _optional(self, row: Mapping[str, Any], role: str) -> Any:
        """What a row has in a role that it need not have; None where it has nothing."""
        name = getattr(self, role)
        if not name:
            return None
        return row.get(name) if name == role else row[name]


QAC = Columns()


@dataclass(frozen=True)
class Options:
    """The flags that formatters read: each gets those that it has as keyword arguments.

    columns: `[NAME:]question=...,answer=...,correction=...,feedback=...`. prefer: better or safer. multi_turn: take dialogues.
    pairs, margin, pairs_per_question, equal_proportion: of rated answers (rated.py). damage, hold_back: kinds of damage of
    `restoration`, comma-separated, and what of it is kept for measuring. format: the data set that a bare path means (by default
    found out from its first rows). sentences: of every data set, each record becomes those of its sentences (by_sentence.py).
    """

    columns: tuple[str, ...] = ()
    prefer: str | None = None
    multi_turn: bool = False
    pairs: str | None = None
    margin: float | None = None
    pairs_per_question: int | None = None
    equal_proportion: float = 0.0
    damage: str | None = None
    hold_back: str | None = None
    format: str | None = None
    sentences: bool = False

    def __post_init__(self) -> None:
        damage_plan(self.damage, self.hold_back)  # a misspelt kind is reported before any row is read

    def names(self) -> list[str]:
        """The names of the options that are set and that formatters read."""
        return [
            name for name in self.__dataclass_fields__ if name not in ("format", "sentences") and getattr(self, name)
        ]

    def chosen_for(self, dataset: str, choices: Set[str]) -> dict[str, Any]:
        """The keyword arguments for the formatter of a data set that has these choices."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["columns"] = parse_columns(self.columns, dataset)
        return {name: value for name, value in values.items() if value and name in choices}


NO_OPTIONS = Options()


def options_from(*settings: Any) -> Options:
    """The options among the fields of a command's settings."""
    values = {name: value for each in settings for name, value in vars(each).items()}
    values["columns"] = tuple(values["columns"])
    return Options(**{name: values[name] for name in Options.__dataclass_fields__ if name in values})


def split_columns(text: str) -> tuple[str, str]:
    """The data set that a `--columns` value names ('' for all that read it), and its pairs."""
    before, colon, pairs = text.partition(":")
    return (before, pairs) if colon and "=" not in before else ("", text)


def parse_columns(texts: Sequence[str], name: str) -> Columns | None:
    """The columns that the flag gives a data set; what stands behind its `NAME:` goes before what is for all.

    UserError where a role is named twice, or a field has two.
    """
    fields: dict[str, dict[str, str]] = {"": {}, name: {}}
    for text in texts:
        before, pairs = split_columns(text)
        for pair in pairs.split(","):
            role, equals, column = (part.strip() for part in pair.partition("="))
            if not equals or role not in ROLES or not (column or role in OPTIONAL):
                raise UserError(f"--columns {text}: write question=NAME,answer=NAME,correction=NAME,feedback=NAME.")
            if before in fields:
                if role in fields[before]:
                    both = f"'{fields[before][role]}' and '{column}'"
                    raise UserError(f"--columns {text}: {role} is named twice, as {both}. Name it once.")
                fields[before][role] = column
    chosen = fields[""] | fields[name]
    return Columns(**chosen) if chosen else None
