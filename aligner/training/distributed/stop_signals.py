"""Being stopped: a request that all ranks agree on after an update, save, and end with the exit status for "run me again".

The launch script writes the request into the run's folder (DeepSpeed's launcher would end the ranks one by one); a rank
that something else has started takes the signal itself. Anyone may stop a run by making the file.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

EXIT_AGAIN = 75  # EX_TEMPFAIL: what schedulers take for "queue me again"
REQUEST = "STOP"
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)


class Stopped(Exception):
    """A run was asked to stop and has saved its state."""

    def __init__(self, update: int) -> None:
        super().__init__(f"stopped after update {update}, which is saved. The same command goes on from there.")


def request(folder: Path) -> None:
    """Ask the ranks of a run, in any of its stages, to stop after the update they are at."""
    (folder / REQUEST).touch()


def withdraw(folder: Path) -> None:
    """Take a request back, or forget one that was followed."""
    (folder / REQUEST).unlink(missing_ok=True)


def is_requested(folder: Path) -> bool:
    """Whether a run is asked to stop."""
    return (folder / REQUEST).exists()


class Asked:
    """Takes the signals that ask for a stop, once installed; a second Ctrl-C raises KeyboardInterrupt."""

    def __init__(self, then: Callable[[signal.Signals], None] = lambda number: None) -> None:
        self.seen, self._interrupts, self._then = False, 0, then
        self._previous = {number: signal.signal(number, self._take) for number in SIGNALS}

    def _take(self, number: int, frame: object) -> None:
        self._interrupts += number == signal.SIGINT
        if number == signal.SIGINT and self._interrupts == 2:  # a third one would disturb the ending
            raise KeyboardInterrupt
        if not self.seen:
            self.seen = True
            self._then(signal.Signals(number))

    def restore(self) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
