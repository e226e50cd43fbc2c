"""The rows of JSON lines and of a JSON array, read piece by piece: memory does not grow with the file."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from aligner.readers.content import LONGEST_LINE, blocks_of, lines_of
from aligner.records import DataError, Origin, Row

REPEATED = "\0repeated"  # where an object of JSON notes a key that stands in it twice
_BLANK, NEWLINE = " \t\r\n", "\n"
TOO_LONG = f"is longer than {LONGEST_LINE >> 20} MiB"


def line_rows(file: Path, blocks: Iterator[bytes]) -> Iterator[Row | DataError]:
    """JSON lines, read one by one; blank lines count as lines but hold no row.

    A byte order mark in front of a line (files joined with `cat`) is not text and is passed over.
    """
    name = str(file)
    for number, line in enumerate(lines_of(blocks), 1):
        if line is None:
            yield DataError(name, number, TOO_LONG, "Write one JSON object a line")
            continue
        text, problem = "", None
        try:
            text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8").strip(_BLANK)
            if text:
                yield _row(Origin(name, number), json.loads(text, object_pairs_hook=_object))
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 at byte {error.start + 1}", "Save the file as UTF-8"
        except (ValueError, RecursionError) as error:
            if number == 1 and text.startswith("{") and _is_one_object(file):
                problem = "it holds one JSON object where a list of rows should be", "Wrap the rows in [ ]"
                raise DataError(name, None, *problem) from None
            place = f"column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            problem = _json_problem(error, place), "Write one whole JSON object a line"
        if problem:
            yield DataError(name, number, *problem)


def array_rows(file: Path, blocks: Iterator[bytes]) -> Iterator[Row | DataError]:
    """The elements of a JSON array, each read when it is whole. DataError with row None where the array breaks."""
    window, number = _Window(file, blocks), 0
    window.expect("[")
    if window.next_sign() == "]":
        window.at += 1
    else:
        while True:
            number += 1
            yield _row(Origin(str(file), number), window.value())
            if window.next_sign() == "]":
                window.at += 1
                break
            window.expect(",")
    if window.next_sign():
        raise window.fault(json.JSONDecodeError("Extra data", window.text, window.at))


class _Window:
    """The part of a JSON text that is being read: `text[at:]` is what comes next, `lines` and `column` are where it begins."""

    def __init__(self, file: Path, blocks: Iterator[bytes]) -> None:
        self.file, self.blocks = file, blocks
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.json = json.JSONDecoder(object_pairs_hook=_object)
        self.text, self.at, self.lines, self.column, self.ended = "", 0, 0, 0, False

    def grow(self) -> bool:
        """Read as much again as is left, and drop what was used; False, and nothing changes, at the end of the file."""
        parts: list[str] = []
        size = 0
        while size <= len(self.text) - self.at and not self.ended:
            parts.append(self._decode(next(self.blocks, b""), sum(part.count("\n") for part in parts)))
            size += len(parts[-1])
        if not size:
            return False
        used = self.text[: self.at]
        self.column = len(used) - used.rfind("\n") - 1 if "\n" in used else self.column + len(used)
        self.lines += used.count("\n")
        self.text, self.at = "".join([self.text[self.at :], *parts]), 0
        return True

    def _decode(self, block: bytes, lines: int) -> str:
        """A block as text; `lines` are those read since the window's own text."""
        self.ended = not block
        try:
            return self.decoder.decode(block, final=self.ended)
        except UnicodeDecodeError as error:
            line = self.lines + self.text.count("\n") + lines + error.object[: error.start].count(b"\n") + 1
            raise DataError(str(self.file), None, f"line {line} is not UTF-8", "Save the file as UTF-8") from None

    def next_sign(self) -> str:
        """The next character that is not blank, where `at` then stands; empty at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _BLANK:
                self.at += 1
            if self.at < len(self.text) or not self.grow():
                return self.text[self.at : self.at + 1]

    def expect(self, sign: str) -> None:
        """Pass a sign. DataError where something else stands there."""
        if self.next_sign() != sign:
            raise self.fault(json.JSONDecodeError(f"Expecting '{sign}' delimiter", self.text, self.at))
        self.at += 1

    def value(self) -> Any:
        """The next value: read again with more text where it does not end, or might not end, in what is there."""
        self.next_sign()
        while True:
            try:
                value, end = self.json.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if len(self.text) - self.at > LONGEST_LINE:
                    problem = f"the row that begins at line {self.lines + self.text.count(NEWLINE, 0, self.at) + 1} {TOO_LONG}"
                    raise DataError(str(self.file), None, problem, "Correct the file there") from None
                if not self.grow():
                    raise self.fault(error) from None
            except (ValueError, RecursionError) as error:
                raise self.fault(error) from None
            else:
                if end < len(self.text) or not self.grow():  # at the very end a number might go on
                    self.at = end
                    return value

    def fault(self, error: Exception) -> DataError:
        """What is wrong with the file, and at which line and column."""
        place = ""
        if isinstance(error, json.JSONDecodeError):
            line, column = error.lineno + self.lines, error.colno + (self.column if error.lineno == 1 else 0)
            place = f"line {line} column {column}"
        return DataError(str(self.file), None, _json_problem(error, place), "Correct the file there")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, which notes a key that stands in it twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        fields[REPEATED] = next(key for key in fields if keys.count(key) > 1)
    elif (inside := _repeated(list(fields.values()))) is not None:
        fields[REPEATED] = inside
    return fields


def _repeated(value: Any) -> str | None:
    """The note of an object in a value, or None; an object has that of what is in it."""
    if isinstance(value, list):
        return next((key for each in value if (key := _repeated(each)) is not None), None)
    return value.get(REPEATED) if isinstance(value, dict) else None


def _row(origin: Origin, value: Any) -> Row | DataError:
    """A row of JSON, if it means one thing."""
    if (repeated := _repeated(value)) is not None:
        return DataError(*origin, f"the key '{repeated}' stands in it twice", "Remove one of the two")
    return Row(origin, value)


def _json_problem(error: Exception, place: str) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON at {place}: {error.msg}"
    if isinstance(error, RecursionError):
        return "the JSON is nested too deeply"
    return "a number in it has thousands of digits"  # the one other ValueError of the parser


def _is_one_object(file: Path) -> bool:
    """Whether the whole file is one object, of a size that can be looked at."""
    most = LONGEST_LINE >> 20
    blocks = list(islice(blocks_of(file), most + 1))
    if len(blocks) > most:
        return False
    try:
        json.loads(b"".join(chain(blocks)).decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return True
