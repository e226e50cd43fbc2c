"""Shadow mode's file: questions, answers and corrections as rows to check and to train on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from aligner.jsonl import LineLog
from aligner.parsing import json_value
from aligner.records import UserError

log = logging.getLogger("aligner")


class ShadowLog:
    """A file of JSON lines that grows. UserError where it cannot be written, or holds something else.

    `shared`: other processes write to it too; one that does not share it must have opened it before them, for it is mended there.
    """

    def __init__(self, file: str, shared: bool = False) -> None:
        self.file, self.written = file, 0
        try:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            self._log = LineLog(Path(file))
            self._log.start(keep_torn=not shared and self._is_row(self._log.torn), shared=shared)
        except OSError as error:
            raise UserError(f"{file}: cannot be written ({error.strerror}).") from None

    def _is_row(self, last: bytes) -> bool:
        """Whether a last line without an end is a whole row; one of this program that a kill cut off is not, and is removed.

        UserError where it is neither: another file is left as it is.
        """
        try:
            if not last or isinstance(json_value(last), dict):
                return True
        except ValueError:
            pass
        if not last.startswith(b'{"question"'):
            raise UserError(f"{self.file}: is no file of rows (its last line is no JSON object). Name another.")
        log.warning("%s: its last row was cut off and is removed", self.file)
        return False

    def add(self, question: str, answer: str, correction: str, **more: Any) -> None:
        """Write a row; one without text is left out, for nothing can be trained on it."""
        if question.strip() and answer.strip() and correction.strip():
            self._log.append({"question": question, "answer": answer, "correction": correction, **more})
            self.written += 1

    def close(self) -> None:
        """Close the file."""
        self._log.close()
