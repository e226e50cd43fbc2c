"""A stream whose client never waits in silence: comment lines while nothing else is there to send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

WAITING = b": waiting\n\n"  # a comment, which clients pass over


async def kept_alive(events: AsyncGenerator[bytes, None], seconds: float) -> AsyncGenerator[bytes, None]:
    """The events, with a comment at once and wherever none came for so many seconds."""
    pending: asyncio.Future[bytes] | None = None
    try:
        yield WAITING
        while True:
            pending = pending or asyncio.ensure_future(anext(events))
            await asyncio.wait({pending}, timeout=seconds)
            if not pending.done():
                yield WAITING
                continue
            done, pending = pending, None
            try:
                piece = done.result()
            except StopAsyncIteration:
                return
            yield piece
    finally:
        if pending:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        await events.aclose()
