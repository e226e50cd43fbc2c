"""The rows of a table as text: CSV, TSV, or semicolons, with a header; read with Python's csv, strictly."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from aligner.readers.content import LONGEST_LINE, lines_of
from aligner.records import DataError, Origin, Row

_RETURNS = re.compile(r"[^\r]*(?:\r\n?|\n)")  # lines that end in a carriage return alone, as old Macs wrote them
QUOTE = 'Put a text that holds the separator, a quotation mark or a newline in "quotation marks", its own ones doubled'


def delimited_rows(file: Path, blocks: Iterator[bytes], delimiter: str) -> Iterator[Row | DataError]:
    """Rows are counted from the first below the header, blank lines not; every field is text, an empty one is empty text.

    Columns without a name may be several. DataError with row None where the header names a column twice, or the quotation
    marks do not close.
    """
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(_text_lines(file, blocks), delimiter=delimiter, strict=True)
    rows = _rows(file, reader)
    names = next(rows, [])
    if names and names[0].lower().startswith("sep="):  # Excel's own line, in front of the header
        names = next(rows, [])
    if twice := [name for name, count in Counter(names).items() if count > 1 and name.strip()]:
        raise DataError(str(file), None, f"its header names the column '{twice[0]}' twice", "Rename one of the two")
    for number, fields in enumerate(rows, 1):
        origin = Origin(str(file), number)
        if len(fields) != len(names):
            yield DataError(*origin, f"has {len(fields)} fields where the header has {len(names)}", QUOTE)
        else:
            yield Row(origin, dict(zip(names, fields, strict=True)))


def _rows(file: Path, reader: Iterator[list[str]]) -> Iterator[list[str]]:
    """The rows that are not blank lines. DataError where a row cannot be told from the next."""
    while True:
        begun = reader.line_num + 1  # type: ignore[attr-defined]
        try:
            fields = next(reader, None)
        except csv.Error as error:
            problem = f"the row that begins at line {begun} cannot be read ({error})"
            raise DataError(str(file), None, problem, QUOTE) from None
        if fields is None:
            return
        if fields:
            yield fields


def _text_lines(file: Path, blocks: Iterator[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines_of(blocks), 1):
        if line is None:
            raise DataError(str(file), None, f"line {number} is longer than {LONGEST_LINE >> 20} MiB", QUOTE)
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8") + "\n"
        except UnicodeDecodeError:
            raise DataError(str(file), None, f"line {number} is not UTF-8", "Save the file as UTF-8") from None
        yield from (text,) if "\r" not in text[:-2] else _RETURNS.findall(text)
