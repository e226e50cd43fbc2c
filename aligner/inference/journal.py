"""The finished rows of a job, line by line on the disk: a job that is killed continues without repeating or losing a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aligner.jsonl import LineLog
from aligner.locks import take
from aligner.parsing import json_value
from aligner.records import UserError


class Journal:
    """A file of JSON lines: what the job is, then (kind, row, value) of each finished row. `done` has those of earlier runs.

    Raises UserError where the file belongs to another job, or another process is writing it.
    """

    def __init__(self, file: Path, job: dict[str, Any]) -> None:
        self.file = file
        self._release = take(
            Path(f"{file}.lock"), f"{file}: another run is writing it. Wait for it, or name another output."
        )
        try:
            self._log = LineLog(file)
            earlier, self.done = self._parse()
            # Without a finished row there is nothing to lose: another model may have been named by mistake.
            if self.done and (changed := [n for n in earlier.keys() | job.keys() if earlier.get(n) != job.get(n)]):
                raise UserError(
                    f"{file}: was begun with other {', '.join(sorted(changed))}. Use the same as then to continue, or remove "
                    "it to start over."
                )
            self._log.start(empty=not self.done)
            if not self.done:
                self._log.append(job)
        except BaseException:
            self._release()
            raise

    def _parse(self) -> tuple[dict[str, Any], dict[tuple[str, int], Any]]:
        """The job of an earlier run and its finished rows."""
        try:
            lines = [json_value(line) for line in self._log.lines]
            done = {(line["kind"], line["row"]): line["value"] for line in lines[1:]}
            return dict(lines[0]) if lines else {}, done
        except (ValueError, LookupError, TypeError, AttributeError):
            raise UserError(f"{self.file}: is damaged. Remove it to start over.") from None

    def add(self, kind: str, row: int, value: Any) -> None:
        """Keep the result of a row."""
        self.done[kind, row] = value
        self._log.append({"kind": kind, "row": row, "value": value})

    def close(self, remove: bool = False) -> None:
        """Release the file; `remove` it where the job is finished and its output is in its place."""
        self._log.close()
        if remove:
            self.file.unlink()
        self._release()
