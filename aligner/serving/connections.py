"""A connection has so many seconds to send a request's headers, and a server so many connections.

The server has a time limit for idle connections alone; one that sends a header a minute stays open, a file handle each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

SECONDS = 10.0  # for all headers of a request, from the connection or the last answer on
Factory = Callable[..., Any]


def timed(protocol: Factory, most: int, seconds: float = SECONDS) -> Factory:
    """A factory of the protocol's connections, which are closed where their headers take longer, or where there are more than
    `most` of them."""
    open_now = set[Any]()

    def make(*args: Any, **options: Any) -> Any:
        inner = protocol(*args, **options)
        on_made, on_lost = inner.connection_made, inner.connection_lost

        def connection_made(transport: asyncio.Transport) -> None:
            on_made(transport)
            open_now.add(inner)
            if len(open_now) > most:
                transport.abort()
            else:
                watch(transport, None)

        def connection_lost(error: Exception | None) -> None:
            open_now.discard(inner)
            on_lost(error)

        def watch(transport: asyncio.Transport, before: Any) -> None:
            """Look again after the limit: with the same request as then, answered, nothing whole has come since."""
            if transport.is_closing():
                return
            if before is not None and inner.cycle is before[0] and _answered(before[0]):
                transport.abort()
            else:
                inner.loop.call_later(seconds, watch, transport, (inner.cycle,) if _answered(inner.cycle) else None)

        inner.connection_made, inner.connection_lost = connection_made, connection_lost
        return inner

    return make


def _answered(cycle: Any) -> bool:
    """Whether no request is under way: none has come, or the last one has its answer."""
    return cycle is None or bool(cycle.response_complete)
