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
    """A run was stopped and has saved its state. place: after which update or stage."""

    def __init__(self, place: str) -> None:
        super().__init__(f"stopped after {place}, which is saved. The same command goes on from there.")


def request_stop(folder: Path) -> None:
    """Request that the ranks of a run stop after the current update, in whichever stage."""
    (folder / REQUEST).touch()


def clear_stop_request(folder: Path) -> None:
    """Remove a request to stop."""
    (folder / REQUEST).unlink(missing_ok=True)


def is_stop_requested(folder: Path) -> bool:
    """Whether there is a request."""
    return (folder / REQUEST).exists()


class StopSignals:
    """Receives the signals that ask for a stop, once installed; a second Ctrl-C raises KeyboardInterrupt."""

    def __init__(self, on_first: Callable[[signal.Signals], None] = lambda number: None) -> None:
        self.received, self._interrupts, self._on_first = False, 0, on_first
        self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def _receive(self, number: int, frame: object) -> None:
        self._interrupts += number == signal.SIGINT
        if number == signal.SIGINT and self._interrupts == 2:  # a third one would disturb the ending
            raise KeyboardInterrupt
        if not self.received:
            self.received = True
            self._on_first(signal.Signals(number))

    def restore(self) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def stop_requested(signals: StopSignals | None, folder: Path | None) -> bool:
    """Whether this rank knows of a request: by a signal it received or, on the first rank, by the file in the run's folder."""
    return bool(signals and signals.received) or bool(folder and is_stop_requested(folder))
