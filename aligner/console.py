"""Logging: one logger to the screen and, in a run, to its train.log. Colour only on a terminal."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm


class _Screen(logging.Handler):
    """Writes through tqdm, so that a line does not tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        stream = sys.stdout if record.levelno < logging.WARNING else sys.stderr
        with suppress(OSError):  # a terminal that was closed is no reason to lose a run
            tqdm.write(prefix + record.getMessage(), file=stream)


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
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
