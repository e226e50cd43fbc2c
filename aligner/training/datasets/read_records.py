"""The rows of a data set -> its records, row by row: what was left out, and what is wrong with a row, stand among them."""

from __future__ import annotations

import difflib
import traceback
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from aligner.hub import is_hub_address, parse_address, read_hub
from aligner.known_prompts import SENTENCE, find_template
from aligner.prompts import DEFAULT
from aligner.readers.rows import read_rows_lazily
from aligner.records import Correction, DataError, Origin, Row, Skipped
from aligner.texts import kind_of, text_fault
from aligner.training.datasets.by_sentence import check_sentences, sentence_records
from aligner.training.datasets.formats import FORMATS
from aligner.training.datasets.options import NO_OPTIONS, QAC, Columns, Options
from aligner.training.datasets.registry import RawDataset, Spec

ONE_ANSWER_SETS = {*FORMATS[1:], "firefly"}  # whose rows may have an answer and no better one
ONE_ANSWER = "it has one answer and no better one beside it"
Read = Correction | Skipped | DataError


def records_of(spec: Spec, options: Options = NO_OPTIONS, prompt: str | None = None, copy: int = 0) -> Iterator[Read]:
    """Every row of a data set in order: its record, why it was left out, or what is wrong with it. `copy`: how often the rows were
    taken before, for a data set that then gives others.

    Rows need the fields that their prompt shows: `prompt` where one is chosen for all, else the data set's own.
    """
    template = find_template(prompt or spec.dataset.template or DEFAULT.name)
    if not options.sentences:
        yield from _rows_of(spec, options, template.slots, copy)
        return
    check_sentences(template if prompt else SENTENCE)
    for row in _rows_of(spec, options, template.slots - {"prefix"}, copy):
        yield from sentence_records(row, prompt or SENTENCE.name) if isinstance(row, Correction) else [row]


def question_records_of(spec: Spec, options: Options = NO_OPTIONS) -> Iterator[Read]:
    """The same where questions alone are wanted: a row needs no answer."""
    yield from _rows_of(spec, options, {"question"}, 0)


def _rows_of(spec: Spec, options: Options, slots: Set[str], copy: int) -> Iterator[Read]:
    chosen = options.chosen_for(spec.dataset.name, spec.dataset.choices()) | ({"copy": copy} if copy else {})
    rows = read_hub(parse_address(spec.path)) if is_hub_address(spec.path) else read_rows_lazily(spec.path)
    for row in _together(rows, spec.dataset.together) if spec.dataset.together else rows:
        if isinstance(row, DataError):
            yield row
        else:
            yield from _records(spec.dataset, row, chosen, slots)


def _together(rows: Iterable[Row | DataError], field: str) -> Iterator[Row | DataError]:
    """Neighbouring rows with the same value of a field as one, whose value is their list and whose place the first one's."""

    def shared(row: Row | DataError) -> Any:
        """The field's value; a row that has none stands alone."""
        return row.value[field] if is_object(row) and field in row.value else row  # type: ignore[union-attr]

    def is_object(row: Row | DataError) -> bool:
        return isinstance(row, Row) and isinstance(row.value, Mapping)

    for _, group in groupby(rows, shared):
        same = list(group)
        if all(map(is_object, same)):
            yield Row(same[0].origin, [row.value for row in same])  # type: ignore[union-attr]
        else:
            yield from same


def _records(dataset: RawDataset, row: Row, chosen: dict[str, Any], slots: Set[str]) -> list[Read]:
    """What a row, or several that belong together, gives."""
    origin, value = row
    if not isinstance(value, list if dataset.together else Mapping):
        fault = f"holds {kind_of(value)} where an object should be"
        return [_fault(origin, fault, "Write an object with the fields")]
    records = _formatted(dataset, origin, value, chosen, slots)
    return [_checked(dataset, origin, each, slots) for each in (records if isinstance(records, list) else [records])]


def _formatted(dataset: RawDataset, origin: Origin, value: Any, chosen: dict[str, Any], slots: Set[str]) -> Any:
    """What the formatter returns, or what is wrong with the row."""
    shown = value
    if isinstance(value, Mapping):
        shown = _shown(value, chosen.get("columns", QAC), slots, "columns" in dataset.choices())
    try:
        return dataset.formatter(shown, **chosen)
    except DataError:  # a column that cannot be decoded: the file's fault
        raise
    except KeyError as error:
        fields = value[0] if isinstance(value, list) else value
        return _missing_field(dataset, origin, fields, str(error.args[0]) if error.args else "?")
    except ValueError as error:
        return _fault(origin, f"{dataset.name}: {error}", "Mend the row")
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name} line {place.lineno}"
        return _fault(
            origin,
            f"{dataset.name} fails with {type(error).__name__}: {error} ({where})",
            "Mend the row or the function",
        )


def _shown(value: Mapping[str, Any], columns: Columns, slots: Set[str], by_columns: bool) -> Mapping[str, Any]:
    """A row as its formatter sees it: what no model sees is empty where it is missing, and where no prompt asks for objectives a
    field of that name that holds something else is no fault."""
    if by_columns and "feedback" not in slots and not isinstance(value.get("objectives"), str | list | None):
        value = ChainMap({"objectives": None}, value)  # type: ignore[arg-type]
    if by_columns and "prefix" not in slots and columns.prefix == "prefix":  # a field of that name means something else
        value = ChainMap({"prefix": None}, value)  # type: ignore[arg-type]
    empty = {getattr(columns, role): "" for role in _unseen(slots)}
    return ChainMap(value, empty) if empty else value  # type: ignore[arg-type]


def _unseen(slots: Set[str]) -> Set[str]:
    """The fields that no model sees, which a row may lack."""
    return {"question", "answer"} - slots


def _checked(dataset: RawDataset, origin: Origin, record: Any, slots: Set[str]) -> Read:
    """One record of a row with its place, or what is wrong with it."""
    if isinstance(record, DataError):
        return record
    if isinstance(record, Skipped):
        return replace(record, origin=origin)
    if not isinstance(record, Correction):
        return _fault(origin, f"{dataset.name} returns {kind_of(record)} and no Correction", "Mend its function")
    may_be_empty = {"feedback", "prefix", *_unseen(slots), *({"correction"} if "prefix" in slots else ())}
    for field in ("question", "answer", "correction", "feedback", "prefix"):
        if field == "answer" and not record.answer and dataset.name in ONE_ANSWER_SETS and "answer" in slots:
            return _fault(origin, ONE_ANSWER, "A prompt without {answer} (--prompt_template) trains question to answer")
        if fault := text_fault(origin, field, getattr(record, field), field in may_be_empty):
            return fault
    return replace(record, origin=origin, prompt=record.prompt or dataset.template or "")


def _missing_field(dataset: RawDataset, origin: Origin, value: Mapping[str, Any], missing: str) -> DataError:
    near = difflib.get_close_matches(missing, map(_printable, value), n=1)
    remedy = f"Rename '{near[0]}' to '{missing}'" if near else f"It has {_names(value)}"
    if "columns" in dataset.choices():
        remedy += ", or give --columns " if near else ": give --columns "
        remedy += f"{missing}={near[0]}" if near else "question=NAME,answer=NAME,correction=NAME"
    elif not (code := Path(dataset.formatter.__code__.co_filename)).is_relative_to(Path(__file__).parent):
        remedy += f", or mend {dataset.formatter.__name__} in {code.name}"
    return _fault(origin, f"the field '{missing}' is missing", remedy)


def _fault(origin: Origin, problem: str, remedy: str) -> DataError:
    return DataError(origin.file, origin.row, problem, remedy)


def _names(value: Mapping[str, Any]) -> str:
    return "the fields " + ", ".join(sorted(map(_printable, value))[:8]) if value else "no fields"


def _printable(name: object) -> str:
    """A field's name in one line, escaped where it holds what cannot be seen."""
    return str(name) if str(name).isprintable() else ascii(str(name)).strip("'")
