"""Logging: one logger to the screen and, in a run, to its train.log. Colour only on a terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aligner.keys import without_keys
from aligner.terminal import print_errors, printable

NOW_AND_THEN = 30.0  # seconds between two lines of progress where no terminal shows a bar


def has_terminal() -> bool:
    """Whether somebody watches: a bar in a file is one line of thousands of characters."""
    return bool(sys.stderr and sys.stderr.isatty())


def progress(
    items: Iterable[Any],
    *,
    total: int | None = None,
    desc: str = "",
    unit: str = " items",
    delay: float = 0,
    **rest: Any,
) -> Iterator[Any]:
    """The items, under a bar on a terminal; else with a plain line now and then. Arguments as tqdm's."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if has_terminal():
        yield from tqdm(items, total=total, desc=desc, unit=unit, delay=delay, **rest)
        return
    began = last = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        if (now := time.monotonic()) - last >= NOW_AND_THEN:
            last = now
            print_progress(desc, count, total, unit, (now - began) / count)


def print_progress(desc: str, count: int, total: int | None, unit: str, seconds: float, figures: str = "") -> None:
    """A plain line of progress: `training: 120 of 3,000 updates, 4 % (1.2 s each): loss 1.234`."""
    of = f" of {total:,}{unit}, {count / total:.0%}" if total else unit
    with suppress(OSError):
        print_errors(
            f"{desc + ': ' if desc else ''}{count:,}{of} ({seconds:.3g} s each){': ' + figures if figures else ''}"
        )


class _Screen(logging.Handler):
    """Writes through tqdm, so that a line does not tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        stream = sys.stdout if record.levelno < logging.WARNING else sys.stderr
        with suppress(OSError):  # a terminal that was closed is no reason to lose a run
            tqdm.write(prefix + _line(record), file=stream)


def _line(record: logging.LogRecord) -> str:
    """A message as one line that no terminal obeys, on the screen and in a file that somebody will `cat`."""
    return printable(without_keys(record.getMessage()))


def _file_line(record: logging.LogRecord) -> str:
    """The same with time and level, and a traceback where there is one."""
    clean = copy(record)
    clean.msg, clean.args = _line(record), ()
    return logging.Formatter("%(asctime)s %(levelname)s %(message)s").format(clean)


def setup_logging(log_file: Path | None = None, quiet: bool = False) -> None:
    """Send this project's messages to the screen (unless quiet) and to a file where one is given."""
    logger = logging.getLogger("aligner")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.addHandler(logging.NullHandler() if quiet else _Screen())
    if log_file:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(log_file, encoding="utf-8")
        handler.format = _file_line  # type: ignore[method-assign]
        logger.addHandler(handler)
