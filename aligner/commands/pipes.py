"""`--input -` and `--output -`: standard input and output in place of files."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from aligner.terminal import show_as

PIPE = "-"


@contextlib.contextmanager
def piped_files(source: str, target: str) -> Iterator[tuple[str, str]]:
    """The files to read and to write. For `-` a temporary one: filled from standard input first, or copied to standard output at
    the end, so that only whole rows leave. What the command prints goes to standard error then, and a kill leaves nothing."""
    if PIPE not in (source, target):
        yield source, target
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as printing:
        read, written = Path(folder) / "standard-input", Path(folder) / "standard-output"
        show_as(read, "standard input")
        show_as(written, "standard output")
        if source == PIPE:
            with read.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        if target == PIPE:
            printing.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield str(read) if source == PIPE else source, str(written) if target == PIPE else target
        printing.close()
        if target == PIPE and written.exists():
            sys.stdout.write(written.read_text(encoding="utf-8"))
