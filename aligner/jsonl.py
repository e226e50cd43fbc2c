"""Files of JSON lines that grow while a program runs, and what a kill may leave at their end."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

from aligner.files import json_line


class LineLog:
    """A file of JSON lines that only grows and has one writer, or `shared` ones of one machine.

    `lines` holds its whole lines when it was opened, `torn` what a kill left of one more. Nothing is changed on the disk until
    `start`.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        text = file.read_bytes() if file.is_file() else b""
        end = text.rfind(b"\n") + 1
        self.lines, self.torn = text[:end].splitlines(), text[end:]
        self._stream: IO[str] | None = None
        self._shared = False

    def start(self, empty: bool = False, keep_torn: bool = False, shared: bool = False) -> None:
        """Open for writing. The torn line is cut off, or ended where it is to be kept; `empty`: all lines are dropped; `shared`:
        other processes write too, so that a line without an end may be one that is being written."""
        self._shared = shared
        if shared:
            self._stream = self.file.open("a", encoding="utf-8")
            return
        if self.torn and not keep_torn and not empty:
            os.truncate(self.file, self.file.stat().st_size - len(self.torn))
        self._stream = self.file.open("w" if empty else "a", encoding="utf-8")
        if self.torn and keep_torn and not empty:
            self._stream.write("\n")

    def append(self, value: Any) -> None:
        """Write one line, whole when this returns. OSError names the file."""
        assert self._stream, "start() comes first"
        try:
            with alone(self._stream) if self._shared else nullcontext():
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


@contextmanager
def alone(stream: IO[str]) -> Iterator[None]:
    """While no other process that asks for the same writes to the file; a long line may take several writes."""
    fcntl.flock(stream, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(stream, fcntl.LOCK_UN)
