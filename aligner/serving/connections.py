"""A connection has so many seconds to send a request's headers, and a server so many connections.

The server has a time limit for idle connections alone; one that sends a header a minute stays open, a file handle each. And
where handles run out, asyncio reports every connection of its queue again and again, with a traceback.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aligner.records import UserError

SECONDS = 10.0  # for all headers of a request, from the connection or the last answer on
OWN = 32  # file handles of the process that belong to no connection: libraries, logs, the event loop
BACKLOG = 512  # connections that may wait to be accepted
ROUNDS = 4  # of the event loop, from accepting a connection that is one too many until its handle is closed
log = logging.getLogger("aligner")
Factory = Callable[..., Any]


def affordable(wished: int) -> tuple[int, int]:
    """How many connections the limit of open files (`ulimit -n`) has room for, and how many may wait to be accepted.

    A connection takes two handles, one of them towards the upstream. The soft limit is raised as far as is needed and allowed.
    UserError where there is room for none.
    """
    needed = OWN + 2 * wished + ROUNDS * BACKLOG
    files = _open_files(needed)
    if files >= needed:
        return wished, BACKLOG
    backlog = max(1, (files - OWN) // (2 * ROUNDS))
    most = min(wished, (files - OWN - ROUNDS * backlog) // 2)
    if most < 1:
        raise UserError(f"only {files} files may be open (ulimit -n): a server needs more. Run 'ulimit -n 4096' first.")
    if most < wished:
        log.warning("only %d files may be open (ulimit -n): at most %d connections at once", files, most)
    return most, min(backlog, BACKLOG)


def _open_files(needed: int) -> int:
    """The limit of open files, raised to `needed` where the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return needed
    soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


@dataclass
class TimedConnections:
    """Makes the connections of a protocol, which are closed where their headers take longer than so many seconds, or where there
    are more than `most` of them."""

    protocol: Factory
    most: int
    seconds: float = SECONDS
    open_now: set[Any] = field(default_factory=set)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """A connection's protocol."""
        inner = self.protocol(*args, **options)
        on_made, on_lost = inner.connection_made, inner.connection_lost

        def connection_made(transport: asyncio.Transport) -> None:
            on_made(transport)
            self.open_now.add(inner)
            if len(self.open_now) > self.most:
                transport.abort()
            else:
                self._watch(inner, transport, None)

        def connection_lost(error: Exception | None) -> None:
            self.open_now.discard(inner)
            on_lost(error)

        inner.connection_made, inner.connection_lost = connection_made, connection_lost
        return inner

    def _watch(self, inner: Any, transport: asyncio.Transport, before: Any) -> None:
        """Look again after the limit: with the same request as then, answered, nothing whole has come since."""
        if transport.is_closing():
            return
        if before is not None and inner.cycle is before[0] and _answered(before[0]):
            transport.abort()
        else:
            seen = (inner.cycle,) if _answered(inner.cycle) else None
            inner.loop.call_later(self.seconds, self._watch, inner, transport, seen)


def _answered(cycle: Any) -> bool:
    """Whether no request is under way: none has come, or the last one has its answer."""
    return cycle is None or bool(cycle.response_complete)
