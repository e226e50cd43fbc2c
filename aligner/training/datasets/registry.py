"""The registry of raw data sets, and the specs `NAME[:PROPORTION[:PATH]]` that name one on a command line.

A raw data set is one function from a row to a record; reading, counting and checking are done here for all of them.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from aligner.files import Row, read_rows
from aligner.records import Correction, DataError, Origin, UserError

Formatter = Callable[[dict[str, Any]], Correction]


@dataclass(frozen=True)
class RawDataset:
    """A registered data set: its formatter, where its rows lie by default, and the prompt it recommends."""

    name: str
    formatter: Formatter
    path: str | None = None
    template: str | None = None

    def version(self) -> str:
        """The name and a hash of the formatter's source: another formatter gives other records."""
        source = inspect.getsource(self.formatter)
        return f"{self.name} {hashlib.sha256(source.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Spec:
    """A data set on a command line. `proportion` of its rows, or `count` of them where that is given."""

    text: str
    dataset: RawDataset
    proportion: Fraction
    count: int | None
    path: str

    def size(self, rows: int) -> int:
        """How many of `rows` rows to take; more than there are means up-sampling."""
        return self.count if self.count is not None else round(rows * self.proportion)


REGISTERED: dict[str, RawDataset] = {}


def register(name: str, path: str | None = None, template: str | None = None) -> Callable[[Formatter], Formatter]:
    """Register a formatter under a name that specs can use. UserError where the name is taken or holds a colon."""
    if ":" in name or not name.strip():
        raise UserError(f"a data set cannot be called '{name}': a name has no colon and is not empty.")

    def keep(formatter: Formatter) -> Formatter:
        taken = REGISTERED.get(name)
        if taken and taken.formatter.__code__.co_filename != formatter.__code__.co_filename:
            raise UserError(f"the data set name '{name}' is already registered. Choose another.")
        REGISTERED[name] = RawDataset(name, formatter, path, template)
        return formatter

    return keep


def register_files(files: list[str]) -> None:
    """Run the user's Python files so that they register their data sets (`--register`)."""
    for file in files:
        location = Path(file).expanduser()
        if not location.is_file():
            raise UserError(f"--register {file}: there is no such file.")
        digest = hashlib.sha256(str(location.resolve()).encode()).hexdigest()[:12]
        specification = importlib.util.spec_from_file_location(f"aligner_registered_{digest}", location)
        if specification is None or specification.loader is None:
            raise UserError(f"--register {file}: is not a Python file.")
        try:
            specification.loader.exec_module(importlib.util.module_from_spec(specification))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"--register {file}: fails with {type(error).__name__}: {error}") from error


def parse_spec(text: str) -> Spec:
    """Read `NAME[:PROPORTION[:PATH]]` or a bare path, which means `correction-json::PATH`.

    PROPORTION is a decimal, a fraction `a/b`, or a count `N/-1`; above 1 it repeats rows. UserError otherwise.
    """
    name, colon, rest = text.partition(":")
    dataset = REGISTERED.get(name)
    if dataset is None:
        if not Path(text).expanduser().exists():
            raise UserError(_unknown(text, name))
        return Spec(text, REGISTERED["correction-json"], Fraction(1), None, text)
    share, _, path = rest.partition(":")
    if colon and ":" in rest and not path:
        raise UserError(f"'{text}': the path behind the second colon is empty.")
    proportion, count = _parse_share(text, name, share.strip())
    path = path or dataset.path or ""
    if not path:
        raise UserError(f"'{text}': {name} needs a path. Write {name}::PATH.")
    return Spec(text, dataset, proportion, count, str(Path(path).expanduser()))


def _unknown(text: str, name: str) -> str:
    near = difflib.get_close_matches(name, REGISTERED, n=1)
    if ":" in text and near:
        return f"'{text}': there is no data set '{name}'. Did you mean '{near[0]}'?"
    return f"'{text}': there is no such file, nor a data set of that name (known: {', '.join(sorted(REGISTERED))})."


def _parse_share(text: str, name: str, share: str) -> tuple[Fraction, int | None]:
    if not share:
        return Fraction(1), None
    left, slash, right = share.partition("/")
    try:
        if slash and int(right) == -1:
            if int(left) < 1:
                raise ValueError
            return Fraction(1), int(left)
        value = Fraction(left.strip()) / Fraction(right.strip()) if slash else Fraction(share)
    except (ValueError, ZeroDivisionError):
        problem = f"'{text}': '{share}' is not a proportion (0.5, 1/3, or 1000/-1 for a count)."
        remedy = f" For a path write {name}::{share}." if Path(share).expanduser().exists() else ""
        raise UserError(problem + remedy) from None
    if value <= 0 or not math.isfinite(float(value)):
        raise UserError(f"'{text}': the proportion must be above 0.")
    return value, None


def records_of(dataset: RawDataset, path: str) -> Iterator[Correction | DataError]:
    """Every row of a data set in order: its record, or what is wrong with it."""
    for row in read_rows(path):
        yield row if isinstance(row, DataError) else _record(dataset, row)


def _record(dataset: RawDataset, row: Row) -> Correction | DataError:
    origin, value = row
    if not isinstance(value, Mapping):
        return _fault(origin, f"holds {_kind(value)} where an object should be", "Write an object with the fields")
    try:
        record = dataset.formatter(dict(value))
    except KeyError as error:
        missing = str(error.args[0]) if error.args else "?"
        near = difflib.get_close_matches(missing, map(str, value), n=1)
        remedy = f"Rename '{near[0]}' to '{missing}'" if near else f"It has {_names(value)}"
        return _fault(origin, f"the field '{missing}' is missing", remedy)
    except Exception as error:
        return _fault(origin, f"{dataset.name} fails with {type(error).__name__}: {error}", "Mend the row")
    if not isinstance(record, Correction):
        return _fault(origin, f"{dataset.name} returns {_kind(record)} and no Correction", "Mend its function")
    for field in ("question", "answer", "correction"):
        text = getattr(record, field)
        if not isinstance(text, str):
            return _fault(origin, f"'{field}' is {_kind(text)} and not text", "Write text in quotation marks")
        if not text.strip():
            return _fault(origin, f"'{field}' is empty", "Remove the row")
        if any("\ud800" <= character <= "\udfff" for character in text):
            return _fault(origin, f"'{field}' holds half a surrogate pair, which is no text", "Remove the character")
    return replace(record, origin=origin)


def _fault(origin: Origin, problem: str, remedy: str) -> DataError:
    return DataError(origin.file, origin.row, problem, remedy)


def _names(value: Mapping[str, Any]) -> str:
    return "the fields " + ", ".join(sorted(map(str, value))[:8]) if value else "no fields"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
