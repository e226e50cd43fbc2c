"""What was done so far, line by line on the disk: work that is killed goes on without redoing or losing a row."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from aligner.records import UserError


class Journal:
    """A file of JSON lines: what the work is, then (kind, row, value) as each is done. `done` has what stood there.

    Raises UserError where it belongs to other work, or another process is writing it.
    """

    def __init__(self, file: Path, work: dict[str, Any]) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{file}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{file}: another run is writing it. Wait for it, or name another output.") from None
        lines = self._whole_lines()
        if lines and (different := [k for k in lines[0].keys() | work.keys() if lines[0].get(k) != work.get(k)]):
            self._lock.release()
            raise UserError(
                f"{file}: was begun with another {', '.join(sorted(different))}. Say the same as then to go on, or remove it to "
                "start over."
            )
        self.done: dict[tuple[str, int], Any] = {(line["kind"], line["row"]): line["value"] for line in lines[1:]}
        self._stream = file.open("a", encoding="utf-8")
        if not lines:
            self._write(work)

    def _whole_lines(self) -> list[dict[str, Any]]:
        """The lines of an earlier run; a last one that a kill cut off is cut off for good."""
        if not self.file.exists():
            return []
        text = self.file.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            self._lock.release()
            raise UserError(f"{self.file}: is damaged. Remove it to start over.") from None
        if len(whole) < len(text):
            os.truncate(self.file, len(whole))
        return lines

    def add(self, kind: str, row: int, value: Any) -> None:
        """Keep what was done for a row."""
        self.done[kind, row] = value
        self._write({"kind": kind, "row": row, "value": value})

    def _write(self, line: dict[str, Any]) -> None:
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()

    def close(self, remove: bool = False) -> None:
        """Let go of the file; `remove` it where the work is done and its result is in its place."""
        self._stream.close()
        if remove:
            self.file.unlink()
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)
