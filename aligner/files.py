"""Reading data files, and writing files and folders atomically: a finished one is a whole one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from aligner.file_systems import move_folder, wait_for_disk
from aligner.records import DataError, Origin, UserError

COMPLETED = "COMPLETED"
OTHER_FORMATS = (".csv", ".tsv", ".xlsx", ".gz", ".zip", ".arrow", ".pkl")
_SURROGATE = re.compile("[\ud800-\udfff]")
REPEATED = "\0repeated"  # where an object of JSON notes a key that stands in it twice
FORMATS = "a JSON array, JSON lines (one object a line), Parquet, or a folder saved by datasets"


class Row(NamedTuple):
    """One row of a data file, its fields not yet checked."""

    origin: Origin
    value: Any


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row | DataError]:
    """Yield every row of a data file in order; a row that cannot be read is yielded as its DataError.

    Raises DataError with row None where the file as a whole cannot be read.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        yield from _saved_folder_rows(file)
    elif not file.is_file():
        raise DataError(str(path), None, "there is no such file", "Check the path")
    elif file.suffix.lower() in OTHER_FORMATS:
        raise DataError(str(path), None, f"a {file.suffix} file is not read", f"Give {FORMATS}")
    elif file.suffix == ".parquet":
        yield from _parquet_rows(file)
    elif _first_character(file) == "[":
        yield from _array_rows(file)
    else:
        yield from _line_rows(file)


def _decode(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(str(file), None, f"line {line} is not UTF-8", "Save the file as UTF-8") from None


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


def _first_character(file: Path) -> str:
    with file.open("rb") as stream:
        start = stream.read(4096).decode("utf-8", errors="ignore").lstrip("\ufeff \t\r\n")
    return start[:1]


def _array_rows(file: Path) -> Iterator[Row | DataError]:
    try:
        values = json.loads(_decode(file), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise DataError(str(file), None, _json_problem(error, "line {} "), "Correct the file there") from None
    for number, value in enumerate(values, 1):
        yield _row(Origin(str(file), number), value)


def _line_rows(file: Path) -> Iterator[Row | DataError]:
    """JSON lines, read one by one; blank lines count as lines but hold no row."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            text, problem = "", None
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip(" \t\r\n")
                if text:
                    yield _row(Origin(str(file), number), json.loads(text, object_pairs_hook=_object))
            except UnicodeDecodeError as error:
                problem = f"is not UTF-8 at byte {error.start + 1}", "Save the file as UTF-8"
            except (ValueError, RecursionError) as error:
                if number == 1 and text.startswith("{") and _is_one_object(file):
                    problem = "it holds one JSON object where a list of rows should be", "Wrap the rows in [ ]"
                    raise DataError(str(file), None, *problem) from None
                problem = _json_problem(error, ""), "Write one whole JSON object a line"
            if problem:
                yield DataError(str(file), number, *problem)


def _json_problem(error: Exception, place: str) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON at {place.format(error.lineno)}column {error.colno}: {error.msg}"
    if isinstance(error, RecursionError):
        return "the JSON is nested too deeply"
    return "a number in it has thousands of digits"  # the one other ValueError of the parser


def _is_one_object(file: Path) -> bool:
    try:
        json.loads(_decode(file))
    except (ValueError, RecursionError, DataError):
        return False
    return True


def _parquet_rows(file: Path) -> Iterator[Row | DataError]:
    from datasets import Dataset

    try:
        table = Dataset.from_parquet(str(file))
    except Exception as error:
        raise DataError(str(file), None, f"cannot be read as Parquet ({_first_line(error)})", "Write it anew") from None
    for number, value in enumerate(table, 1):
        yield Row(Origin(str(file), number), value)


def _saved_folder_rows(folder: Path) -> Iterator[Row | DataError]:
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except Exception as error:
        problem = f"is not a folder written by datasets' save_to_disk ({_first_line(error)})"
        raise DataError(str(folder), None, problem, f"Give {FORMATS}") from None
    if isinstance(saved, DatasetDict):
        raise DataError(
            str(folder), None, f"it holds the splits {', '.join(saved)}", f"Give one: {folder / next(iter(saved))}"
        )
    for number, value in enumerate(saved, 1):
        yield Row(Origin(str(folder), number), value)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file, or of a folder's files in name order, as hexadecimal text."""
    root, digest = Path(path).expanduser(), hashlib.sha256()
    for file in [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file()):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def whole_file(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file beside `path` and put it in its place only when the block ends without an error."""
    final = Path(path).resolve()  # through a symbolic link, not over it
    in_place = final.exists() and not final.is_file()  # a device, a pipe; a folder is the system's error
    beside = final if in_place else final.with_name(f"{final.name}.partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with beside.open(mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            if not in_place:
                wait_for_disk(stream.fileno())
        if not in_place:
            beside.replace(final)
    except OSError as error:  # the error of a full disk has no file name
        error.filename = error.filename or str(path)
        raise
    finally:
        if not in_place:
            beside.unlink(missing_ok=True)


def sync(file: Path) -> None:
    """Wait until a file's bytes are on the disk: a power failure then leaves no hole in what is renamed after."""
    with file.open("rb") as stream:
        wait_for_disk(stream.fileno())


def refuse_overwriting(output: str, *inputs: str) -> None:
    """UserError where an output would replace an input, or is a folder."""
    if Path(output).is_dir() or output.endswith("/"):
        raise UserError(f"{output}: is a folder. Name a file.")
    if Path(output).resolve() in {Path(path).resolve() for path in inputs}:
        raise UserError(f"{output}: would be written over what is read. Name another file.")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file as a whole or not at all."""
    with whole_file(path) as stream:
        stream.write(text)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file, indented for a reader, as a whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file that this program wrote; UserError where it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not JSON ({_first_line(error)}).") from None


def write_lines(path: str | os.PathLike[str], values: Iterable[Any]) -> None:
    """Write JSON lines, as a whole or not at all."""
    with line_writer(path) as write:
        for value in values:
            write(value)


@contextmanager
def line_writer(path: str | os.PathLike[str]) -> Iterator[Callable[[Any], None]]:
    """A function that adds a line of JSON; the file is in its place when the block ends without an error."""
    with whole_file(path) as stream:
        yield lambda value: print(json_line(value), file=stream)


def json_line(value: Any) -> str:
    """A value as one line of JSON, readable; escaped where it holds what UTF-8 cannot. Dates and the like become text, and
    numbers that JSON does not have (NaN, infinity) null."""
    dumps = partial(json.dumps, default=str, allow_nan=False)
    try:
        line = dumps(value, ensure_ascii=False)
    except ValueError:
        return json_line(json.loads(json.dumps(value, default=str), parse_constant=lambda name: None))
    return line if not _SURROGATE.search(line) else dumps(value)


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a UTF-8 text file; UserError where that cannot be done."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({_first_line(error)}).") from None


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a kill half-way leaves nothing that could be taken for a whole one."""
    if folder.exists():
        doomed = folder.with_name(f"{folder.name}.removing")
        shutil.rmtree(doomed, ignore_errors=True)
        try:
            folder.replace(doomed)
        except OSError:  # a file system that cannot rename a folder: first its mark goes
            doomed = folder
            (folder / COMPLETED).unlink(missing_ok=True)
        shutil.rmtree(doomed, ignore_errors=doomed != folder)


@contextmanager
def whole_folder(path: Path, one_writer: bool = True) -> Iterator[Path]:
    """A folder beside `path` to write into, which takes its place only when the block ends without an error.

    What a killed writer left is removed, unless several may write at once: then each has a folder of its own.
    """
    beside = path.with_name(f"{path.name}.partial" if one_writer else f"{path.name}.{os.getpid()}.partial")
    remove_folder(beside)
    beside.mkdir(parents=True)
    try:
        yield beside
        remove_folder(path)
        move_folder(beside, path)
    finally:
        remove_folder(beside)


def is_completed(folder: str | os.PathLike[str]) -> bool:
    """Whether a stage ended here: a folder says COMPLETED or it is not one."""
    return (Path(folder) / COMPLETED).is_file()


def cache_folder() -> Path:
    """Where what can be made again is kept between runs: ALIGNER_CACHE, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("ALIGNER_CACHE") or Path(base) / "aligner").expanduser()
