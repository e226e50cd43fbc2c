"""Which tool's rows a file holds, by the fields of its first row: the data set that a bare path means."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from aligner.readers.rows import read_rows_lazily
from aligner.records import Row, UserError

QAC = "correction-json"
FORMATS = (QAC, "trl", "sharegpt", "alpaca", "messages")  # `--format`
FIRST = 20  # rows in which one that can be read is looked for


def format_of_file(path: str) -> str:
    """The format of the first row that is an object; question, answer, correction where it is none of the others'."""
    try:
        rows = list(islice(read_rows_lazily(path), FIRST))
    except (UserError, OSError):  # named when all of it is read
        return QAC
    return next(
        (format_of_row(row.value) for row in rows if isinstance(row, Row) and isinstance(row.value, Mapping)), QAC
    )


def format_of_row(row: Mapping[str, Any]) -> str:
    """The format of a row, by its fields alone."""
    fields = set(row)
    if fields & {"question", "answer", "correction"}:
        return QAC
    if "conversations" in fields:
        return "sharegpt"
    if "messages" in fields or {"input", "preferred_output"} <= fields:
        return "messages"
    if "instruction" in fields:
        return "alpaca"
    return "trl" if {"chosen", "rejected"} <= fields or {"prompt", "completion"} <= fields else QAC
