"""A finished build -> the hub, as a data set: its rows, its card and what was kept; no stage, no reply, no address of a server."""

from __future__ import annotations

from pathlib import Path

from aligner.building.result import CARD, PICTURE, ROWS, TABLE
from aligner.files import is_completed
from aligner.hub import is_logged_in, upload
from aligner.readers.paths import BUILD
from aligner.records import UserError

PUBLISHED = (ROWS, CARD, TABLE, PICTURE, "principles.yaml")


def is_build(folder: Path) -> bool:
    """Whether `aligner build` wrote a folder."""
    return (folder / BUILD).is_file()


def push_build(folder: Path, repo: str, private: bool, dry_run: bool) -> tuple[list[tuple[str, int]], str, str]:
    """Upload, or only say what would be: the files with their sizes, the card, and where it lies ('' of a dry run).

    Without a token nothing is uploaded. UserError where the build is not finished, or the hub refuses.
    """
    if not is_completed(folder):
        raise UserError(f"{folder}: is a build that is not finished. Run its 'aligner build' again.")
    files = [(name, (folder / name).stat().st_size) for name in PUBLISHED]
    text = (folder / CARD).read_text(encoding="utf-8")
    if dry_run or not is_logged_in():
        return files, text, ""
    return files, text, upload(folder, repo, "dataset", private, "Data", list(PUBLISHED))
