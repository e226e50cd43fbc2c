"""Servers of one and the same Aligner: which of them gets a request, and which is passed over for a while."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from aligner.serving.protocol import Refused
from aligner.serving.upstream import MODELS, UpstreamClient

log = logging.getLogger("aligner")
LOOK = 0.5  # seconds between two looks at those that are down
PATIENCE = 5.0  # seconds for the answer to such a look
ABSENT = (502, 503, 504)  # statuses with which a gateway says that nobody is there, or a server that it cannot work yet
LONGEST_REST = 30.0  # seconds until a replica that fails again and again is looked at


@dataclass
class Replica:
    """A server, what it has to do, and how it did. `requests`: all that it was sent; `rests_until`: it is passed over till then,
    and until it answers a look."""

    client: UpstreamClient
    under_way: int = 0
    requests: int = 0
    failures: int = 0  # since its last success
    rests_until: float | None = None

    @property
    def is_up(self) -> bool:
        """Whether it gets requests where another could have them."""
        return self.rests_until is None

    def succeeded(self) -> None:
        """A request has its answer."""
        self.failures, self.rests_until = 0, None

    def failed(self) -> None:
        """It could not be reached or broke off: it rests, twice as long each time. Of requests that fail together one counts."""
        now = time.monotonic()
        if self.rests_until is not None and self.rests_until > now:
            return
        if self.is_up:
            log.warning("a server of the Aligner fails: %s gets no requests until it answers again", self.client.place)
        self.failures += 1
        self.rests_until = now + min(LOOK * 2**self.failures, LONGEST_REST)


class Replicas:
    """All of them. Those that are down are looked at in a task of its own, which `start` begins and `stop` ends."""

    def __init__(self, clients: Sequence[UpstreamClient]) -> None:
        self.all = [Replica(client) for client in clients]
        self._task: asyncio.Task[None] | None = None

    def choose(self, tried: Collection[int] = ()) -> Replica | None:
        """The one with least to do of those that were not tried, of equals the one that had least so far; None: all were tried.

        One that is down is chosen where no other is left: it may be back.
        """
        left = [replica for replica in self.all if id(replica) not in tried]
        return min(left, key=lambda each: (not each.is_up, each.under_way, each.requests), default=None)

    def start(self) -> None:
        """Look at those that are down, from now on."""
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Close all connections."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for replica in self.all:
            await replica.client.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            now = time.monotonic()
            due = [each for each in self.all if each.rests_until is not None and each.rests_until <= now]
            await asyncio.gather(*map(_look, due))


async def _look(replica: Replica) -> None:
    """Let a server work again that answers, whatever it says of its models; its failures stay until a request has its answer."""
    try:
        async with asyncio.timeout(PATIENCE):
            reply = await replica.client.ask(MODELS, {})
        if reply.status not in ABSENT:
            replica.rests_until = None
            log.warning("%s answers again", replica.client.place)
            return
    except (Refused, TimeoutError):
        pass
    replica.rests_until = time.monotonic() + min(LOOK * 2**replica.failures, LONGEST_REST)
