"""Output that outlives its reader: `... | head -1` ends the reading, not the run."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def outlive_readers() -> Iterator[None]:
    """While the block lasts, this process and all that it starts write into pipes of ours instead of somebody else's.

    A thread passes on what comes, for as long as somebody reads; files and terminals are left as they are.
    """
    relays = [_Relay.start(number) for number in (1, 2) if _is_pipe(number)]
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        for relay in relays:
            relay.end()


def _is_pipe(number: int) -> bool:
    try:
        mode = os.fstat(number).st_mode
    except OSError:  # it is closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


class _Relay:
    """A pipe in the place of one of this process's outputs, and the thread that empties it into that output."""

    def __init__(self, number: int, reader: int, real: int) -> None:
        self.number, self.real = number, real
        self.thread = threading.Thread(target=self._pass_on, args=(reader,), daemon=True)
        self.thread.start()

    @staticmethod
    def start(number: int) -> _Relay:
        """Put a pipe in the place of an output."""
        real = os.dup(number)
        reader, writer = os.pipe()
        os.dup2(writer, number)
        os.close(writer)
        return _Relay(number, reader, real)

    def _pass_on(self, reader: int) -> None:
        heard = True
        while block := os.read(reader, 1 << 16):
            while heard and block:
                try:
                    block = block[os.write(self.real, block) :]
                except OSError:
                    heard = False
        os.close(reader)

    def end(self) -> None:
        """Put the real output back; what a process that outlives this one still says is not waited for."""
        target = os.dup(self.real) if _has_reader(self.real) else os.open(os.devnull, os.O_WRONLY)
        os.dup2(target, self.number)
        os.close(target)
        self.thread.join(2)


def _has_reader(number: int) -> bool:
    import select

    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
