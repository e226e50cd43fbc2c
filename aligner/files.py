"""Writing files and folders atomically (a finished one is a whole one), reading this program's own files, and digests."""

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
from typing import IO, Any

from aligner.file_systems import move_folder, wait_for_disk
from aligner.parsing import json_value, yaml_value
from aligner.readers.paths import data_files, home_expanded, matches
from aligner.records import DataError, UserError

COMPLETED = "COMPLETED"
_SURROGATE = re.compile("[\ud800-\udfff]")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file, or of the files of a folder or glob in order of name, as hexadecimal text."""
    root, digest = home_expanded(path), hashlib.sha256()
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file()) or matches(root)
    for file in files:
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
    final = Path(output).resolve()
    for path in inputs:
        if Path(path).is_dir() and final.parent == Path(path).resolve():
            raise UserError(f"{output}: would be one of the files of {path}, which are read. Name one elsewhere.")
    if final in {file.resolve() for path in inputs for file in _files_or_path(path)}:
        raise UserError(f"{output}: would be written over what is read. Name another file.")


def _files_or_path(path: str) -> list[Path]:
    try:
        return data_files(path)
    except DataError:  # said when it is read
        return [Path(path)]


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
        return json_value(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file.") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({_first_line(error)}).") from None


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a YAML file; UserError where it is missing or broken."""
    try:
        return yaml_value(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: is not YAML ({error}). Correct it there.") from None


def write_lines(path: str | os.PathLike[str], values: Iterable[Any]) -> None:
    """Write JSON lines, as a whole or not at all."""
    with line_writer(path) as write:
        for value in values:
            write(value)


@contextmanager
def line_writer(path: str | os.PathLike[str]) -> Iterator[Callable[[Any], None]]:
    """A function that adds a line of JSON; the file is in its place when the block ends without an error."""
    with whole_file(path) as stream:

        def write(value: Any) -> None:
            stream.write(f"{json_line(value)}\n")

        yield write


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
        return home_expanded(path).read_text(encoding="utf-8")
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
