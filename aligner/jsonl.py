"""Files of JSON lines that grow while a program runs, and what a kill may leave at their end."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from aligner.files import json_line


class LineLog:
    """A file of JSON lines that only grows and has one writer.

    `lines` holds its whole lines when it was opened, `torn` what a kill left of one more. Nothing is changed on the disk until
    `start`.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        text = file.read_bytes() if file.is_file() else b""
        end = text.rfind(b"\n") + 1
        self.lines, self.torn = text[:end].splitlines(), text[end:]
        self._stream: IO[str] | None = None

    def start(self, empty: bool = False, keep_torn: bool = False) -> None:
        """Open for writing. The torn line is cut off, or ended where it is to be kept; `empty`: all lines are dropped."""
        if self.torn and not keep_torn and not empty:
            os.truncate(self.file, self.file.stat().st_size - len(self.torn))
        self._stream = self.file.open("w" if empty else "a", encoding="utf-8")
        if self.torn and keep_torn and not empty:
            self._stream.write("\n")

    def append(self, value: Any) -> None:
        """Write one line, whole when this returns. OSError names the file."""
        assert self._stream, "start() comes first"
        try:
            self._stream.write(json_line(value) + "\n")
            self._stream.flush()
        except OSError as error:
            error.filename = error.filename or str(self.file)
            raise

    def close(self) -> None:
        """Close the file. A full disk was reported when the line was written."""
        if self._stream:
            with suppress(OSError):
                self._stream.close()
