"""The flags that data sets read: field names, which judgement decides, dialogues or not."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

from aligner.records import UserError


class Columns(NamedTuple):
    """The names of the three fields in a row."""

    question: str = "question"
    answer: str = "answer"
    correction: str = "correction"


QAC = Columns()


@dataclass(frozen=True)
class Options:
    """The flags that formatters read: each gets those that it has as keyword arguments.

    columns: `[NAME:]question=...,answer=...,correction=...`. prefer: better or safer. multi_turn: take dialogues.
    """

    columns: tuple[str, ...] = ()
    prefer: str | None = None
    multi_turn: bool = False

    def names(self) -> list[str]:
        """The names of the options that are set."""
        return [name for name in ("columns", "prefer", "multi_turn") if getattr(self, name)]

    def chosen_for(self, dataset: str, choices: Set[str]) -> dict[str, Any]:
        """The keyword arguments for the formatter of a data set that has these choices."""
        values: dict[str, Any] = {"prefer": self.prefer, "multi_turn": self.multi_turn}
        values["columns"] = parse_columns(self.columns, dataset)
        return {name: value for name, value in values.items() if value and name in choices}


NO_OPTIONS = Options()


def split_columns(text: str) -> tuple[str, str]:
    """The data set that a `--columns` value names ('' for all that read it), and its pairs."""
    before, colon, pairs = text.partition(":")
    return (before, pairs) if colon and "=" not in before else ("", text)


def parse_columns(texts: Sequence[str], name: str) -> Columns | None:
    """The columns that the flag gives a data set; with `NAME:` in front it is for that one alone."""
    fields: dict[str, str] = {}
    for text in texts:
        before, pairs = split_columns(text)
        for pair in pairs.split(","):
            field, equals, column = (part.strip() for part in pair.partition("="))
            if not equals or field not in Columns._fields or not column:
                raise UserError(f"--columns {text}: write question=NAME,answer=NAME,correction=NAME.")
            if before in ("", name):
                fields[field] = column
    return Columns(**fields) if fields else None
