"""Where questions lie: a registered data set, a file of any form, a set on the hub. Rows -> questions, with what cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aligner.files import sha256_of
from aligner.hub import commit_of, is_hub_address, parse_address, read_hub
from aligner.readers.paths import names_data
from aligner.readers.rows import read_rows_lazily
from aligner.records import Correction, DataError, Row, Skipped
from aligner.texts import kind_of, text_fault
from aligner.training.datasets.read_records import question_records_of
from aligner.training.datasets.registry import parse_spec

FIELDS = ("question", "prompt", "instruction", "conversations", "messages", "text", "goal", "chosen")
USERS = ("user", "human", "prompter")


def questions_in(data: str, field: str = "") -> Iterator[dict[str, Any]]:
    """Every row of a source as `question` and `origin`; one that has no question as `origin` and `fault`.

    data: a path or hub:ORG/NAME, whose questions stand in `field` or in the first usual one; or a registered data set's spec.
    DataError where the source as a whole cannot be read.
    """
    if is_hub_address(data) or names_data(data):
        rows = read_hub(parse_address(data)) if is_hub_address(data) else read_rows_lazily(data)
        for row in rows:
            yield _question(row, field)
        return
    for record in question_records_of(parse_spec(data)):
        if isinstance(record, DataError):
            if record.row is None:
                raise record
            yield _fault(record)
        elif isinstance(record, Skipped):
            yield {"origin": str(record.origin), "fault": record.reason}
        else:
            assert isinstance(record, Correction)
            yield {"question": record.question, "origin": str(record.origin)}


def _question(row: Row | DataError, field: str) -> dict[str, Any]:
    if isinstance(row, DataError):
        if row.row is None:
            raise row
        return _fault(row)
    if not isinstance(row.value, Mapping):
        return {"origin": str(row.origin), "fault": f"holds {kind_of(row.value)} where an object should be"}
    name = field or next((name for name in FIELDS if row.value.get(name)), "")
    if not name:
        return {
            "origin": str(row.origin),
            "fault": f"has no field of a question ({', '.join(FIELDS)}; 'question' of a source names another)",
        }
    text = _first_turn(row.value.get(name))
    more = row.value.get("input") if name == "instruction" else ""
    if isinstance(more, str) and more.strip() and isinstance(text, str):
        text = f"{text}\n\n{more}"
    if fault := text_fault(row.origin, name, text):
        return _fault(fault)
    return {"question": str(text).strip(), "origin": str(row.origin)}


def _first_turn(value: Any) -> Any:
    """The first user's message of a dialogue; anything else as it is."""
    if not isinstance(value, list):
        return value
    for each in value:
        if isinstance(each, Mapping) and str(each.get("role") or each.get("from") or "").lower() in USERS:
            return each.get("content") or each.get("value")
    return None


def _fault(error: DataError) -> dict[str, Any]:
    return {"origin": f"{error.file} row {error.row}", "fault": error.problem}


def version_of(data: str) -> str:
    """What the rows of a source are: the sha256 of its files, or the commit on the hub."""
    if is_hub_address(data):
        return commit_of(parse_address(data))
    if names_data(data):
        return sha256_of(data)
    spec = parse_spec(data)
    return f"{spec.text} {spec.sha256(spec.files())}"
