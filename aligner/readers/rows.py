"""The reader of data files: the rows of whatever a path names, as the bytes are."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from aligner.readers.columnar import packed_parquet_rows, parquet_rows, saved_rows
from aligner.readers.content import compression_of, format_of
from aligner.readers.delimited import delimited_rows
from aligner.readers.json_rows import array_rows, line_rows
from aligner.readers.paths import data_files, files_aside, home_expanded, is_saved_folder
from aligner.records import DataError, Row

log = logging.getLogger("aligner")


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row | DataError]:
    """Every row of a path's data files in order; a row that cannot be read is yielded as its DataError.

    The value of a Row is what JSON says, or a dict of all columns. Raises DataError with row None where a file as a whole
    cannot be read.
    """
    for row in read_rows_lazily(path):
        yield row if isinstance(row, DataError) or isinstance(row.value, dict | list) else _whole(row)


def read_rows_lazily(path: str | os.PathLike[str]) -> Iterator[Row | DataError]:
    """The same rows, where those of Parquet and of saved folders are mappings that decode a column when it is read."""
    place = home_expanded(path)
    if is_saved_folder(place):
        yield from saved_rows(place)
        return
    if aside := files_aside(place):
        log.warning("%s: not read, by their names: %s", place, ", ".join(aside))
    for file in data_files(path):
        yield from _rows_of_file(file)


def _whole(row: Row) -> Row:
    return Row(row.origin, dict(row.value)) if hasattr(row.value, "keys") else row


def _rows_of_file(file: Path) -> Iterator[Row | DataError]:
    kind, blocks = format_of(file)
    if kind == "array":
        yield from array_rows(file, blocks)
    elif kind == "lines":
        yield from line_rows(file, blocks)
    elif kind != "parquet":
        yield from delimited_rows(file, blocks, kind)
    elif _is_compressed(file):
        yield from packed_parquet_rows(file, blocks)
    else:
        yield from parquet_rows(file)


def _is_compressed(file: Path) -> bool:
    with file.open("rb") as stream:
        return compression_of(stream.read(16)) is not None
