"""The rows that are corrected: read, checked, and found again in an earlier output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner.inference.published_answers import read_answers
from aligner.objectives import split_objectives
from aligner.readers.rows import read_rows
from aligner.records import DataError, Origin, UserError
from aligner.texts import kind_of, text_fault
from aligner.training.datasets.options import QAC, Columns

ADDED = (
    "corrected",
    "finished",
    "edits",
    "passes",
    "error",
    "answer_finished",
    "guard",
    "guard_reason",
    "cut_off",
    "nats_ahead",
    "steered",
    "by_sentence",
    "route",
)


@dataclass
class Item:
    """A row in progress: its fields as they were read, which of them have a role, and its fault, if it has one."""

    origin: Origin
    fields: dict[str, Any]
    columns: Columns = QAC
    fault: DataError | None = None

    def text(self, role: str) -> Any:
        """What the row has as its question, answer or feedback; empty where it has nothing."""
        return self.fields.get(getattr(self.columns, role)) or ""

    def objectives(self) -> tuple[str, ...]:
        """What the row asks its correction to mind, by name or in words. ValueError where it is neither."""
        return split_objectives(self.fields.get("objectives"))


def earlier_rows(output: str, source: str, items: Sequence[Item]) -> list[dict[str, Any] | None]:
    """The rows of an earlier output that stay; None for those that failed.

    UserError where none failed, or the output is not that of these items.
    """
    read = list(read_rows(output)) if Path(output).is_file() else []
    rows = [row.value for row in read if not isinstance(row, DataError) and isinstance(row.value, dict)]
    if [row.get(item.columns.question) for row, item in zip(rows, items, strict=False)] != [
        item.fields.get(item.columns.question) for item in items
    ] or len(rows) != len(items):
        raise UserError(f"--retry_failed: {output} is not the output of {source}. Give the same two files as before.")
    earlier = [None if row.get("error") else row for row in rows]
    if None not in earlier:
        raise UserError(f"--retry_failed: {output} has no row that failed. There is nothing to do.")
    return earlier


def read_items(path: str, may_ask: bool, columns: Columns = QAC, questions: str | None = None) -> Iterator[Item]:
    """The rows of a file, one by one; unusable ones with their fault. `may_ask`: a row may lack an answer, which the upstream then
    gives. `questions`: of MT-Bench's answers."""
    for row in read_answers(path, questions):
        if isinstance(row, DataError):
            if row.row is None:
                raise row
            yield Item(Origin(row.file, row.row), {}, fault=row)
        else:
            fields = row.value if isinstance(row.value, dict) else {}
            if taken := [name for name in ADDED if name in fields]:
                raise DataError(
                    *row.origin, f"has a field '{taken[0]}', which this program writes", "Rename it in all rows"
                )
            yield Item(row.origin, fields, columns, _fault(row.origin, row.value, may_ask, columns))


def _fault(origin: Origin, value: Any, may_ask: bool, columns: Columns) -> DataError | None:
    if not isinstance(value, dict):
        return DataError(*origin, f"holds {kind_of(value)} where an object should be", "Write question and answer")
    for role in ("question", "answer", "feedback"):
        name = getattr(columns, role)
        text = value.get(name)
        if is_missing(text) and (role == "feedback" or (role == "answer" and may_ask)):
            continue
        if text is None:
            remedy = "Write it, or let --upstream_url ask a model" if role == "answer" else "Each row needs one"
            remedy += f"; where it has another name: --columns {role}=NAME"
            return DataError(*origin, f"the field '{name}' is missing", remedy)
        if fault := text_fault(origin, name, text):
            return fault
    return None


def is_missing(text: Any) -> bool:
    """Whether there is no text."""
    return text is None or (isinstance(text, str) and not text.strip())
