"""The upstream's answer as it is, byte for byte, read on the side."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from typing import Any

from aiohttp import ClientError, ClientResponse
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from aligner.chat_api.replies import error_in, is_whole
from aligner.chat_api.streams import CollectedStream, reply_in
from aligner.serving.behind import ShadowQueue
from aligner.serving.protocol import Refused, event
from aligner.serving.upstream import UpstreamClient, returned


async def untouched(
    upstream: UpstreamClient,
    queue: ShadowQueue | None,
    path: str,
    chat: dict[str, Any],
    caller: Mapping[str, str],
    said: str = "",
) -> ASGIApp:
    """The upstream's own answer; what is whole of a chat's goes to the queue. The upstream is awaited here, where a client that
    disconnects is noticed. `said`: why it is untouched, in the header `x-aligner`."""
    async with AsyncExitStack() as opening:
        response = await opening.enter_async_context(upstream.open(path, caller, chat))
        opened = opening.pop_all()

    async def parts(response: ClientResponse) -> AsyncGenerator[bytes, None]:
        heard = Heard()
        try:
            async for part in response.content.iter_any():
                heard.feed(part)
                yield part
        except (ClientError, TimeoutError) as error:  # the status has been sent: an error in the stream is what is left
            yield event(Refused(502, f"The upstream broke off ({type(error).__name__}).").body())
            return
        if queue and response.status == 200:
            for choice in heard.whole_choices():
                queue.add(chat, choice.get("message"))

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        async with opened:
            headers = returned(response) | ({"x-aligner": said} if said else {})
            await StreamingResponse(parts(response), response.status, headers)(scope, receive, send)

    return respond


class Heard:
    """What passes through, read on the side: a stream, whatever it calls itself, or a whole completion."""

    def __init__(self) -> None:
        self._stream, self._begin = CollectedStream(), b""

    def feed(self, part: bytes) -> None:
        """Add some bytes."""
        self._stream.feed(part)
        if not self._stream.events and len(self._begin) < 1 << 24:
            self._begin += part

    def whole_choices(self) -> list[dict[str, Any]]:
        """The choices that ended by themselves; none of a stream that broke."""
        self._stream.finish()
        if self._stream.events or self._stream.error:
            return self._stream.whole_choices()
        try:
            value = reply_in(self._begin)
        except (ValueError, RecursionError):
            return []
        choices = value.get("choices") if not error_in(value) else None
        listed = choices if isinstance(choices, list) else []
        return [each for each in listed if isinstance(each, dict) and is_whole(each.get("finish_reason"))]
