"""Rows of Parquet and of a folder saved by `datasets`: a column is decoded when a row is asked for it, and never before."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from aligner.parsing import json_value
from aligner.readers.content import limit_of
from aligner.readers.paths import FORMATS
from aligner.records import DataError, Origin, Row

BATCH = 256  # rows that are decoded together


class Fields(Mapping[str, Any]):
    """A row whose columns are decoded when they are first read, for all rows of its batch."""

    __slots__ = ("_batch", "_index")

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch, self._index = batch, index

    def __getitem__(self, name: str) -> Any:
        return self._batch[name][self._index]

    def __contains__(self, name: object) -> bool:
        return name in self._batch.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch.names)

    def __len__(self) -> int:
        return len(self._batch.names)


class Batch:
    """The rows that are decoded together: `names` of all columns, and those decoded so far."""

    def __init__(self, names: Sequence[str], decode: Callable[[str], list[Any]]) -> None:
        self.names, self._decode = names, decode
        self._columns: dict[str, list[Any]] = {}

    def __getitem__(self, name: str) -> list[Any]:
        if name not in self._columns:
            if name not in self.names:
                raise KeyError(name)
            self._columns[name] = self._decode(name)
        return self._columns[name]


def parquet_rows(file: Path) -> Iterator[Row]:
    """The rows of exactly this file, read as its bytes are now. DataError with row None where it cannot be read.

    The file is open as long as anything refers to a row: a column may be decoded late.
    """
    import pyarrow

    yield from _rows_of(file, pyarrow.OSFile(str(file)))


def packed_parquet_rows(file: Path, blocks: Iterator[bytes]) -> Iterator[Row]:
    """The rows of a Parquet file that was compressed as a whole: unpacked into a temporary file, as it is read from its end."""
    scratch = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as its rows are
    for block in blocks:
        scratch.write(block)
    scratch.seek(0)
    yield from _rows_of(file, scratch)


def _rows_of(file: Path, source: Any) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        parquet = pyarrow.parquet.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)
        names = parquet.schema_arrow.names
    except Exception as error:
        raise _fault(file, error) from None
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(str(file), None, f"has the column '{twice[0]}' twice", "Rename one of the two")
    columns: dict[str, _Column] = {}

    def decode(name: str, start: int, stop: int) -> list[Any]:
        if name not in columns:
            columns[name] = _Column(file, parquet, name)
        return columns[name].values(start, stop)

    for start in range(0, parquet.metadata.num_rows, BATCH):
        stop = min(start + BATCH, parquet.metadata.num_rows)
        batch = Batch(names, lambda name, start=start, stop=stop: decode(name, start, stop))  # type: ignore[misc]
        for index in range(stop - start):
            yield Row(Origin(str(file), start + index + 1), Fields(batch, index))


class _Column:
    """One column of a Parquet file, decoded forwards; asked for rows before those, it begins anew."""

    def __init__(self, file: Path, parquet: Any, name: str) -> None:
        self.file, self.parquet, self.name = file, parquet, name
        groups = [parquet.metadata.row_group(index) for index in range(parquet.num_row_groups)]
        self.ends = list(accumulate(group.num_rows for group in groups))
        self.at, self.rest, self.batches = 0, [], iter(())  # type: ignore[var-annotated]
        size = sum(_column_size(group, name) for group in groups)
        packed = sum(_column_size(group, name, packed=True) for group in groups)
        if size > limit_of(packed):
            problem = f"its column '{name}' becomes {size >> 20:,} MiB when decompressed, from {packed:,} bytes"
            raise DataError(str(file), None, problem, "Write it anew, uncompressed, if that is what it should be")
        self._begin(0)

    def _begin(self, row: int) -> None:
        first = sum(end <= row for end in self.ends)
        groups = range(first, len(self.ends))
        self.at, self.rest = self.ends[first - 1] if first else 0, []
        self.batches = self.parquet.iter_batches(
            batch_size=BATCH, row_groups=groups, columns=[self.name], use_threads=False
        )

    def values(self, start: int, stop: int) -> list[Any]:
        """The values of rows start to stop (from 0, stop not included). DataError where they cannot be decoded."""
        try:
            if start < self.at or start - self.at > 16 * BATCH:
                self._begin(start)
            while self.at + len(self.rest) < stop:
                if self.at + len(self.rest) <= start:
                    self.at, self.rest = self.at + len(self.rest), []
                self.rest += _values(next(self.batches).column(0))
        except DataError:
            raise
        except Exception as error:
            raise _fault(self.file, error) from None
        values = self.rest[start - self.at : stop - self.at]
        self.at, self.rest = stop, self.rest[stop - self.at :]
        return values


def _column_size(group: Any, name: str, packed: bool = False) -> int:
    columns = (group.column(index) for index in range(group.num_columns))
    mine = [c for c in columns if c.path_in_schema == name or c.path_in_schema.startswith(f"{name}.")]
    return sum(c.total_compressed_size if packed else c.total_uncompressed_size for c in mine)


def _values(array: Any) -> list[Any]:
    """A column as Python values; text that is not UTF-8 stays bytes."""
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        return [_text_or_bytes(value) for value in array.cast("large_binary").to_pylist()]


def _text_or_bytes(value: bytes | None) -> str | bytes | None:
    try:
        return value if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def saved_rows(folder: Path) -> Iterator[Row]:
    """The rows of a folder written by datasets' save_to_disk, from its Arrow files: a feature that nobody reads is no hindrance.

    DataError where it is no such folder, or holds several splits.
    """
    import pyarrow

    try:
        if (folder / "dataset_dict.json").is_file():
            splits = json_value((folder / "dataset_dict.json").read_bytes())["splits"]
            raise DataError(
                str(folder), None, f"it holds the splits {', '.join(splits)}", f"Give one: {folder / splits[0]}"
            )
        state = json_value((folder / "state.json").read_bytes())
        files = [folder / entry["filename"] for entry in state["_data_files"]]
        if state.get("_indices_files") or state.get(
            "_indices_data_files"
        ):  # as its versions before 2.0 saved a selection
            yield from _rows_loaded(folder)
            return
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise _no_saved_folder(folder, error) from None
    number = 0
    for file in files:
        try:
            with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as stream:
                for batch in stream:
                    yield from _rows_of_table(pyarrow.Table.from_batches([batch]), str(folder), number)
                    number += batch.num_rows
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(
                str(file), None, f"cannot be read as Arrow ({_first_line(error)})", "Save it anew"
            ) from None


def _rows_loaded(folder: Path) -> Iterator[Row]:
    from datasets import load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except Exception as error:
        raise _no_saved_folder(folder, error) from None
    yield from dataset_rows(saved, str(folder))


def _no_saved_folder(folder: Path, error: Exception) -> DataError:
    problem = f"is not a folder written by datasets' save_to_disk ({_first_line(error)})"
    return DataError(str(folder), None, problem, f"Give {FORMATS}")


def dataset_rows(dataset: Any, name: str) -> Iterator[Row]:
    """The rows of a `datasets.Dataset`, whose pictures and sounds are not decoded; `name` is their origin's file."""
    number = 0
    for table in dataset.with_format("arrow").iter(BATCH):
        yield from _rows_of_table(table, name, number)
        number += table.num_rows


def _rows_of_table(table: Any, name: str, before: int) -> Iterator[Row]:
    """The rows of an Arrow table, `before` of which came earlier."""
    for start in range(0, table.num_rows, BATCH):
        part = table.slice(start, BATCH)
        batch = Batch(table.column_names, lambda name, part=part: _values(part.column(name)))  # type: ignore[misc]
        for index in range(part.num_rows):
            yield Row(Origin(name, before + start + index + 1), Fields(batch, index))


def _fault(file: Path, error: Exception) -> DataError:
    line = _first_line(error)
    if "magic bytes not found" in line or "too small" in line or "smaller than the minimum" in line:
        return DataError(str(file), None, "is cut off: Parquet without its end", "Fetch it anew")
    return DataError(str(file), None, f"cannot be read as Parquet ({line})", "Write it anew")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
