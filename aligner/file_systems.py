"""What file systems refuse: kindness (modes, a wait for the disk) may fail in silence, what is needed is tried before a run.

Clusters keep results on CIFS, FUSE and object mounts that have no chmod, no fsync, or cannot rename a folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from aligner.records import UserError

# What a file system answers to a call that it does not have.
UNSUPPORTED = {
    errno.EPERM,
    errno.EACCES,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.EINVAL,
    errno.EXDEV,
    errno.EMFILE,
    errno.ENOTTY,
    errno.EBADRQC,
}
MARK = "COMPLETED"


def wait_for_disk(number: int) -> None:
    """Wait until an open file's bytes are on the disk, where the file system can be waited for."""
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def umask() -> int:
    """The permissions that new files of this process lack."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("Umask:")), 8)
    except (OSError, StopIteration, ValueError):
        mask = os.umask(0o077)
        os.umask(mask)
        return mask


def give_usual_mode(*files: Path) -> None:
    """Let files be read by those who may read any new file of this user: safetensors writes for its owner alone."""
    for file in files:
        with suppress(OSError):
            if file.is_file():
                file.chmod(0o666 & ~umask())


def move_folder(source: Path, final: Path) -> None:
    """Rename a folder to a place where there is none; where the file system cannot, copy it, its mark of completion last."""
    try:
        source.rename(final)
        return
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    _copy_folder(source, final)
    shutil.rmtree(source, ignore_errors=True)


def _copy_folder(source: Path, final: Path) -> None:
    """Copy a folder's contents alone: modes and times may be refused too."""
    final.mkdir(parents=True)
    for entry in sorted(source.iterdir(), key=lambda entry: entry.name == MARK):
        if entry.is_dir():
            _copy_folder(entry, final / entry.name)
        else:
            shutil.copyfile(entry, final / entry.name)


@dataclass(frozen=True)
class Ability:
    """One thing that a file system can or cannot do. `needed`: a run ends without it. `error`: why not, or ""."""

    name: str
    needed: bool
    error: str

    @property
    def works(self) -> bool:
        """Whether it can."""
        return not self.error


def abilities(folder: Path) -> list[Ability]:
    """Try in a folder, which is made where it is missing, what a run does there; nothing is left behind."""
    place = folder / f".try-{os.getpid()}-{time.time_ns():x}"
    results: list[Ability] = []
    try:
        for name, needed, act in _steps(place):
            try:
                act()
                results.append(Ability(name, needed, ""))
            except OSError as error:
                results.append(Ability(name, needed, error.strerror or str(error)))
                if name == "write":
                    break
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return results


def _steps(place: Path) -> list[tuple[str, bool, Callable[[], object]]]:
    """What is tried in a folder of its own: a name, whether a run needs it, and the trial, which raises OSError."""
    first, second, inner = place / "first", place / "second", place / "inner"

    def write() -> None:
        place.mkdir(parents=True)
        first.write_bytes(b"first")
        second.write_bytes(b"second")
        if first.read_bytes() != b"first":
            raise OSError(errno.EIO, "what was read back differs from what was written")

    def append() -> None:
        with second.open("ab") as stream:
            stream.write(b" again")

    def rename_folder() -> None:
        inner.mkdir()
        (inner / "file").write_bytes(b"")
        inner.rename(place / "renamed")

    def on_descriptor(act: Callable[[int], object]) -> None:
        with second.open("rb") as stream:
            act(stream.fileno())

    return [
        ("write", True, write),
        ("append", True, append),
        ("rename a file over another", True, lambda: first.replace(second)),
        ("rename a folder", False, rename_folder),
        ("chmod", False, lambda: second.chmod(0o600)),
        ("fsync", False, lambda: on_descriptor(os.fsync)),
        ("lock", False, lambda: on_descriptor(lambda number: fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB))),
    ]


def require_usable(folder: Path, flag: str = "--output_dir") -> None:
    """UserError, before any work, where a run could not keep its results in a folder."""
    for ability in abilities(folder):
        if ability.needed and not ability.works:
            what = "cannot be written" if ability.name == "write" else f"its file system cannot {ability.name}"
            raise UserError(f"{folder}: {what} ({ability.error}). Give {flag} on another file system.")
