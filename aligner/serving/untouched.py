"""The upstream's answer as it is, byte for byte but for the keys that this process has, read on the side."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from typing import Any

from aiohttp import ClientError, ClientResponse
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from aligner.chat_api.replies import error_in, is_whole
from aligner.chat_api.streams import CollectedStream, EventReader, Lines, chunk_in, reply_in
from aligner.keys import bytes_without_keys
from aligner.serving.behind import ShadowQueue
from aligner.serving.protocol import Refused, event, json_answer
from aligner.serving.upstream import UpstreamClient, connection_fault, returned

BINARY = ("audio/", "image/", "video/")  # what has no lines
WHOLE = 1 << 22  # bytes of a whole completion that is read


async def untouched(
    upstream: UpstreamClient,
    queue: ShadowQueue | None,
    path: str,
    chat: dict[str, Any],
    caller: Mapping[str, str],
    reason: str = "",
) -> ASGIApp:
    """The upstream's own answer; what is whole of a chat's goes to the queue. The upstream is awaited here, where a client that
    disconnects is noticed. `reason`: why it is untouched, in the header `x-aligner`."""
    async with AsyncExitStack() as opening:
        response = await opening.enter_async_context(upstream.open(path, caller, chat))
        opened = opening.pop_all()

    async def parts(response: ClientResponse) -> AsyncGenerator[bytes, None]:
        choices_seen = PassingChoices(queue.longest) if queue else None
        try:
            async for part in passing(response, choices_seen):
                yield part
        except (ClientError, TimeoutError) as error:  # the status has been sent: an error in the stream is what is left
            yield event(Refused(502, f"The upstream broke off: {connection_fault(error)}.").body())
            return
        if queue and choices_seen:
            for choice in choices_seen.whole_choices():
                queue.add(chat, choice.get("message"))
            if choices_seen.is_too_long:
                queue.drop()

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        async with opened:
            headers = returned(response) | ({"x-aligner": reason} if reason else {})
            answer: Response
            if response.status == 200:
                answer = StreamingResponse(parts(response), 200, headers)
            else:
                content = json_answer(response.status, await upstream.read(response), response.content_type)
                answer = Response(content, response.status, headers | {"content-type": "application/json"})
            await answer(scope, receive, send)

    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await respond(scope, receive, send)
        except Refused as error:  # before anything was sent: reading an error may fail
            await error.response()(scope, receive, send)

    return refusing


async def passing(response: ClientResponse, choices_seen: PassingChoices | None = None) -> AsyncGenerator[bytes, None]:
    """The bytes of an answer as they come, of texts by whole lines, in which no key of this process is left."""
    kind = returned(response)["content-type"].lower()
    blotted = None if kind.startswith(BINARY) and response.status < 400 else BlottedLines()
    async for part in response.content.iter_any():
        if choices_seen:
            choices_seen.feed(part)
        if sent := blotted.feed(part) if blotted else part:
            yield sent
    if blotted:
        yield blotted.rest()


class BlottedLines:
    """A stream of lines without the keys that this process has."""

    def __init__(self) -> None:
        self._lines = Lines()

    def feed(self, part: bytes) -> bytes:
        """The whole lines so far that were not given out."""
        return bytes_without_keys(b"".join(self._lines.feed(part)))

    def rest(self) -> bytes:
        """What comes at the end."""
        return bytes_without_keys(self._lines.rest())


class PassingChoices:
    """What passes through, read on the side: a stream, whatever it calls itself, or a whole completion. `longest`: characters of
    the texts that are kept, of more nothing is."""

    def __init__(self, longest: int = 100_000) -> None:
        self._longest, self._size = longest, 0
        self._reader, self._stream, self._begin = EventReader(), CollectedStream(), bytearray()

    @property
    def is_too_long(self) -> bool:
        """Whether there was more than is kept."""
        return self._size > self._longest

    def feed(self, part: bytes) -> None:
        """Add some bytes."""
        if self.is_too_long:
            return
        for data in self._reader.feed(part):
            self._add(data)
        if not self._stream.events and len(self._begin) < WHOLE:
            self._begin += part

    def _add(self, data: str) -> None:
        """Add a chunk, of which the texts and their ends are kept."""
        chunk = chunk_in(data) or {}
        if error_in(chunk):
            self._stream.add(chunk)
        elif isinstance(chunk.get("choices"), list):
            choices = [_text_of(choice) for choice in chunk["choices"] if isinstance(choice, Mapping)]
            self._size += sum(1 + _length(choice["delta"]["content"]) for choice in choices)
            self._stream.add({"choices": choices})
        if self.is_too_long:
            self._stream = CollectedStream()
            self._begin.clear()

    def whole_choices(self) -> list[dict[str, Any]]:
        """The choices that ended by themselves; none of a stream that broke, or was too long."""
        for data in self._reader.end():
            self._add(data)
        if self._stream.events or self._stream.error or self.is_too_long:
            return self._stream.whole_choices()
        try:
            value = reply_in(bytes(self._begin))
        except ValueError:
            return []
        choices = value.get("choices") if not error_in(value) else None
        listed = choices if isinstance(choices, list) else []
        return [each for each in listed if isinstance(each, dict) and is_whole(each.get("finish_reason"))]


def _text_of(choice: Mapping[str, Any]) -> dict[str, Any]:
    delta = choice.get("delta") or choice.get("message")
    content = delta.get("content") if isinstance(delta, Mapping) else None
    return {"index": choice.get("index"), "finish_reason": choice.get("finish_reason"), "delta": {"content": content}}


def _length(content: Any) -> int:
    """Characters of a text, or of its parts."""
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = (part.get("text") for part in parts if isinstance(part, Mapping))
    return len(parts) + sum(len(text) for text in texts if isinstance(text, str))
