"""Which files a path names: exactly the named one, the data files of a folder, or what a glob matches, in order of name."""

from __future__ import annotations

import difflib
import glob
import os
from pathlib import Path

from aligner.records import DataError

NAMES = (".json", ".jsonl", ".ndjson", ".parquet", ".pq", ".csv", ".tsv")
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
FORMATS = (
    "a JSON array, JSON lines (one object a line), Parquet, CSV or TSV with a header, or a folder saved by datasets"
)
BUILD = "stages/build.json"  # in a folder that `aligner build` wrote: what it says of itself
_SAVED = ("state.json", "dataset_dict.json")


def home_expanded(path: str | os.PathLike[str]) -> Path:
    """A path with `~` and `~NAME` at its beginning as homes; as it is where there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises for a user that is not there


def data_files(path: str | os.PathLike[str]) -> list[Path]:
    """The data files of a path, in order of name; of a folder saved by `datasets` all its files.

    A path is a pattern only where nothing of that very name exists. DataError where it names no file.
    """
    place = home_expanded(path)
    if place.is_file():
        return [place]
    if is_saved_folder(place):
        return sorted(file for file in place.rglob("*") if file.is_file())
    if place.is_dir():
        return _files_of_folder(place)
    if place.is_symlink():
        raise DataError(str(path), None, "is a symbolic link to nothing", "Fetch the file that it points at")
    if place.exists():
        raise DataError(str(path), None, "is a device or pipe, and data are read more than once", "Save it as a file")
    if files := matches(place):
        return files
    problem = "there is no such file" + (", and nothing that matches" if glob.has_magic(str(place)) else "")
    raise DataError(str(path), None, problem, "Check the path")


def nearest_folder(path: str) -> str:
    """A question about the folder of nearly this name in the same place; empty where there is none."""
    place = home_expanded(path)
    folders = [each.name for each in place.parent.iterdir() if each.is_dir()] if place.parent.is_dir() else []
    near = difflib.get_close_matches(place.name, folders, n=1)
    return f" Did you mean '{Path(path).parent / near[0]}'?" if near else ""


def names_data(path: str | os.PathLike[str]) -> bool:
    """Whether a path exists or, as a glob, matches a file."""
    place = home_expanded(path)
    return place.exists() or place.is_symlink() or bool(matches(place))


def matches(place: Path) -> list[Path]:
    """The files that a glob matches, in order of name; none where it holds no glob sign.

    The folders in front of it that exist are those of exactly that name.
    """
    if not glob.has_magic(str(place)):
        return []
    folder = next((parent for parent in place.parents if parent.is_dir()), None)
    pattern = Path(glob.escape(str(folder))) / place.relative_to(folder) if folder else place
    try:
        names = glob.glob(str(pattern), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    except ValueError:  # half a surrogate pair or a null byte: no file is called so
        return []
    return sorted(file for name in names if (file := Path(name)).is_file())


def is_saved_folder(place: Path) -> bool:
    """Whether `datasets` wrote this folder with save_to_disk."""
    return any((place / name).is_file() for name in _SAVED)


def files_aside(path: str | os.PathLike[str]) -> list[str]:
    """The names of a folder's files that are not read because their names are not those of data."""
    place = home_expanded(path)
    if not place.is_dir() or is_saved_folder(place) or (place / BUILD).is_file():
        return []
    return sorted(file.name for file in _visible_files(place) if not _has_data_name(file))


def _files_of_folder(folder: Path) -> list[Path]:
    if files := sorted(file for file in _visible_files(folder) if _has_data_name(file)):
        return files
    below = sorted({str(file.parent) for file in folder.rglob("*") if file.is_file() and _has_data_name(file)})
    others = sorted(file.name for file in _visible_files(folder))
    if below:
        raise DataError(str(folder), None, "holds no data files itself", f"Give one of {', '.join(below[:5])}")
    problem = "holds no data files and is not a folder written by datasets' save_to_disk"
    remedy = f"Name files ({', '.join(others[:3])}) or a pattern" if others else f"Give {FORMATS}"
    raise DataError(str(folder), None, problem, remedy)


def _visible_files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.is_file() and not file.name.startswith((".", "_"))]


def _has_data_name(file: Path) -> bool:
    name = file.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return name.endswith(NAMES)
