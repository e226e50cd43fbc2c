"""Answers and their corrections, read from files and joined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aligner.inference.published_answers import read_answers
from aligner.records import DataError, Origin, UserError
from aligner.texts import text_fault
from aligner.training.datasets.options import Columns

QUESTION = ("question", "instruction")  # fields that hold a question, the first that is there
BEFORE = ("answer", "output")  # fields that hold an answer, the first that is there
AFTER = ("corrected", "correction")
USUAL = Columns()


def named_fields(columns: Columns) -> dict[str, tuple[str, ...]]:
    """The fields that `--columns` names, as arguments of `read_pairs`; a role under its usual name is left to it."""
    arguments = {"question": "question_fields", "answer": "before_fields", "correction": "after_fields"}
    named = {role: getattr(columns, role) for role in arguments}
    return {arguments[role]: (name,) for role, name in named.items() if name != getattr(USUAL, role)}


@dataclass(frozen=True, slots=True)
class Pair:
    """An answer and its correction. `upstream`, `category`: fields of the row, or empty. `settled`: whether the last
    of several passes changed nothing any more (idempotence, after `--passes`); None of a single one. `unfinished`: whether its
    correction had no room or no end."""

    origin: Origin
    question: str
    before: str
    after: str
    upstream: str = ""
    category: str = ""
    settled: bool | None = None
    unfinished: bool = False


def read_pairs(
    after: str,
    before: str | None = None,
    after_fields: tuple[str, ...] | None = None,
    before_fields: tuple[str, ...] = BEFORE,
    question_fields: tuple[str, ...] = QUESTION,
) -> tuple[list[Pair], list[DataError]]:
    """The pairs of a file as `aligner correct` writes it, and the rows that cannot be used.

    `before`: a file of its own for the answers, row for row with the same questions. `..._fields`: where
    the texts are, the first that is there. UserError where the two files do not belong together, or no row can be used.
    """
    after_fields = after_fields or (field_in(after, AFTER + BEFORE) if before else AFTER)
    pairs, faults = [], []
    rows, others = _rows(after), _rows(before) if before else None
    if others is not None and len(others) != len(rows):
        raise UserError(
            f"{before} has {len(others):,} rows and {after} {len(rows):,}: they must be the same questions in order."
        )
    for place, row in enumerate(rows):
        pair = _pair(row, others[place] if others else None, after_fields, before_fields, question_fields)
        if isinstance(pair, Pair):
            pairs.append(pair)
        else:
            faults.append(pair)
    if not pairs:
        raise next(iter(faults), None) or UserError(f"{after}: has no rows. Check the path.")
    return pairs, faults


def field_in(path: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The first of these fields that any row of a file has: all its rows are read by it, never one by another than the next."""
    rows = [row[1] for row in _rows(path) if not isinstance(row, DataError)]
    return next(((name,) for name in names if any(row.get(name) is not None for row in rows)), names)


Read = tuple[Origin, dict[str, Any]] | DataError


def _rows(path: str) -> list[Read]:
    rows: list[Read] = []
    for row in read_answers(path):
        if isinstance(row, DataError):
            if row.row is None:
                raise row
            rows.append(row)
        elif isinstance(row.value, dict):
            rows.append((row.origin, row.value))
        else:
            rows.append(DataError(*row.origin, "is no object", "Write question, answer and corrected"))
    return rows


def _pair(
    row: Read,
    other: Read | None,
    after_fields: tuple[str, ...],
    before_fields: tuple[str, ...],
    question_fields: tuple[str, ...],
) -> Pair | DataError:
    for read in (row, other):
        if isinstance(read, DataError):
            return read
    assert not isinstance(row, DataError) and not isinstance(other, DataError)
    (origin, fields), (place, earlier) = row, other or row
    question = _first(earlier, question_fields)  # of a turn with two dialogues before it: that of the answers
    if other and question != _first(fields, question_fields) and _turn(fields) != (_turn(earlier) or ()):
        raise DataError(
            *origin, f"has another question than {place}", "Give two files with the same questions in order"
        )
    for where, texts, names in ((origin, fields, after_fields), (place, earlier, before_fields)):
        if "corrected" in names and texts.get("corrected") is None and texts.get("error"):
            return DataError(*where, "was not corrected", str(texts["error"]))
    before, after = _first(earlier, before_fields), _first(fields, after_fields)
    for name, text in ((question_fields[0], question), (before_fields[0], before), (after_fields[0], after)):
        if text is None:
            remedy = "Write question, answer and corrected, or say in --columns what they are called"
            return DataError(*origin, f"the field '{name}' is missing", remedy)
        if fault := text_fault(origin, name, text, may_be_empty=name == "corrected"):
            return fault
    upstream = _name(fields.get("upstream") or fields.get("generator"))
    passes = fields.get("passes")
    settled = passes[-1] == passes[-2] if isinstance(passes, list) and len(passes) > 1 else None
    unfinished, category = fields.get("finished") is False, _name(fields.get("category"))
    return Pair(origin, str(question), str(before), str(after), upstream, category, settled, unfinished)


def _turn(fields: dict[str, Any]) -> tuple[Any, ...] | None:
    """Which turn of MT-Bench a row is. The question of a second one holds the model's own first answer."""
    names = ("question_id", "turn", "choice")
    return tuple(fields[name] for name in names) if all(name in fields for name in names) else None


def _name(value: Any) -> str:
    """A field of a row as text that can be printed."""
    return str(value or "").encode("utf-8", "replace").decode("utf-8")


def _first(fields: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if fields.get(name) is not None), None)
