"""`aligner serve --sentences`: upstream and Aligner write a chat's answer in turns, and the client reads each corrected sentence.

The upstream is asked as a stream. Where a sentence stays as it is, its stream goes on; where one is corrected, it is closed, and
the upstream is asked to go on from the corrected text. What was sent is never taken back: a failure behind the first sentence ends
the stream with an error. Requests whose answer is not one plain text (tools, several choices, structure) are answered as a whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from aligner.chat_api.dialogue import candidate_questions
from aligner.chat_api.replies import error_in
from aligner.chat_api.streams import EventReader, chunk_in
from aligner.chat_api.thoughts import split_message, split_thoughts
from aligner.inference.continuing import AGAIN, CONTINUE, began_anew, continued_chat
from aligner.inference.guard import wants_structure
from aligner.inference.servers import REFUSED, REMEDY
from aligner.inference.turns import Turns
from aligner.serving.exchange import CHAT, GRACE, SILENCE, Exchange
from aligner.serving.protocol import LAST, Refused, chunk, completion, error_event, usage_chunk
from aligner.serving.turns import corrected_turn
from aligner.serving.upstream import Reply, returned
from aligner.serving.waiting import kept_alive

LONGEST_ANSWER = 1024  # pieces of the upstream's streams for an answer whose request sets no limit
LIMITS = ("max_completion_tokens", "max_tokens")
COMPLETED = ("model", "temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty")
NO_CORRECTION = 503  # the status where the Aligner failed
THOUGHT = 48  # characters by which a thought's tag is known
SEVERAL = ("tools", "functions", "logprobs", "audio", "prediction")


class Piece(NamedTuple):
    """What a stream adds: text, and the reason of its end."""

    text: str
    reason: str | None


class UpstreamRefused(Exception):
    """An upstream that answers with an error, which goes back as it is."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


@dataclass
class Written:
    """An answer in the making. head: the fields of the upstream's chunks; requests: how often it was asked; left: pieces that it
    may still write."""

    left: int
    turns: Turns = field(default_factory=Turns)
    head: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    requests: int = 0


def applies(exchange: Exchange, chat: Mapping[str, Any]) -> bool:
    """Whether a request is answered in turns: its answer is one plain text."""
    if not exchange.policy.sentences or wants_structure(chat) or any(chat.get(name) for name in SEVERAL):
        return False
    return chat.get("n") in (None, 1)


async def respond(exchange: Exchange, chat: dict[str, Any], caller: Mapping[str, str]) -> ASGIApp:
    """The answer to a chat, as a stream or whole. The first second's error has its status."""
    limit = next((chat[name] for name in LIMITS if isinstance(chat.get(name), int)), LONGEST_ANSWER)
    written = Written(max(1, limit))
    texts = _texts(exchange, chat, caller, written)
    try:
        if not chat.get("stream"):
            async with aclosing(texts):
                async for _ in texts:
                    pass
            return JSONResponse(_whole(exchange, written))
        first = asyncio.ensure_future(anext(texts, ""))
        try:
            await asyncio.wait({first}, timeout=GRACE)
        except asyncio.CancelledError:
            first.cancel()
            raise
        if first.done() and first.exception():
            first.result()
    except UpstreamRefused as refused:
        reply = refused.reply
        return Response(reply.content, reply.status, reply.headers)
    events = kept_alive(_events(exchange, chat, first, texts, written), SILENCE)
    return StreamingResponse(events, media_type="text/event-stream")


async def _texts(
    exchange: Exchange, chat: Mapping[str, Any], caller: Mapping[str, str], written: Written
) -> AsyncGenerator[str, None]:
    """What each sentence adds to the answer. Raises Refused, UpstreamRefused."""
    turns, questions = written.turns, candidate_questions(chat["messages"])
    stream: AsyncGenerator[Piece, None] | None = None
    try:
        while True:
            while (sentence := turns.sentence()) is None and not turns.ended:
                stream = stream or _stream(exchange, chat, caller, written)
                piece = await anext(stream, None)
                if piece is None:
                    raise Refused(502, "The upstream's stream has no end.")
                written.left -= 1
                written.reason = piece.reason or ("length" if written.left <= 0 else None)
                turns.add(piece.text, written.reason is not None)
            if sentence is None:
                return
            turn = await corrected_turn(exchange.worker, exchange.policy, questions, turns, sentence)
            added = turns.take(sentence, turn)
            if turn.changed and stream:
                await stream.aclose()
                stream = None
            if written.left <= 0:
                turns.ended = True
            if added:
                yield added
    except Refused as error:
        if error.status == NO_CORRECTION:
            exchange.count("failed")
        raise
    finally:
        if stream:
            await stream.aclose()


async def _stream(
    exchange: Exchange, chat: Mapping[str, Any], caller: Mapping[str, str], written: Written
) -> AsyncGenerator[Piece, None]:
    """The upstream's text from what was said on, without its thoughts."""
    path, body = _request(exchange, chat, written)
    begun, first = "", written.turns.first.strip() if path == CHAT else ""
    held: str | None = ""  # what may still be a thought
    written.requests += 1
    async with aclosing(_chunks(exchange, path, body, caller)) as chunks:
        async for each in chunks:
            written.head = written.head or {name: v for name, v in each.items() if name not in ("choices", "usage")}
            choices = each.get("choices")
            choice = choices[0] if isinstance(choices, list) and choices else {}
            text, reason = _text(choice), choice.get("finish_reason") or ("stop" if "message" in choice else None)
            if len(begun.strip()) < len(first) >= AGAIN:
                begun += text
                if begun.strip().startswith(first):
                    raise Refused(502, began_anew("The upstream"))
            if held is not None:
                held += text
                split = split_thoughts(held)
                maybe = held.lstrip()[:1] in ("", "<", "[", "◁", "&") and len(held) < THOUGHT
                if not reason and ((split.thought and not split.text.strip()) or (maybe and not split.thought)):
                    continue
                text, held = split.text, None
            if text or reason:
                yield Piece(text, reason)
            if reason:
                return


def _text(choice: Mapping[str, Any]) -> str:
    """What a chunk of a chat or completion, or a whole one, says."""
    message = choice.get("delta") or choice.get("message")
    if isinstance(message, Mapping):
        content = message.get("content")
        return content if isinstance(content, str) else split_message(message).text
    text = choice.get("text")
    return text if isinstance(text, str) else ""


def _request(exchange: Exchange, chat: Mapping[str, Any], written: Written) -> tuple[str, dict[str, Any]]:
    """Where and how the upstream is asked: as the caller did, or to go on with what was said."""
    said = written.turns.said
    body = {name: value for name, value in chat.items() if name != "stream_options" or chat.get("stream")}
    if not said:
        return CHAT, {**body, "stream": True}
    limit = next((name for name in LIMITS if isinstance(chat.get(name), int)), None)
    if exchange.chat_prompt is None:
        more = {limit: written.left} if limit else {}
        return CHAT, {**body, **continued_chat(chat["messages"], said), **more, "stream": True}
    kept = {name: chat[name] for name in COMPLETED if name in chat}
    tokenizer = exchange.chat_prompt.encoder.tokenizer
    begin = tokenizer.apply_chat_template(chat["messages"], tokenize=False, add_generation_prompt=True)
    return "/completions", {**kept, "prompt": f"{begin}{said}", "max_tokens": written.left, "stream": True}


async def _chunks(
    exchange: Exchange, path: str, body: Mapping[str, Any], caller: Mapping[str, str]
) -> AsyncGenerator[Mapping[str, Any], None]:
    """The chunks of a reply, or a whole one."""
    async with exchange.upstream.open(path, caller, body) as response:
        if response.status != 200 or response.content_type != "text/event-stream":
            content = await exchange.upstream.read(response)
            if response.status in REFUSED and body.get(CONTINUE):
                raise Refused(502, f"The upstream does not go on with an answer (status {response.status}). {REMEDY}")
            if response.status != 200:
                raise UpstreamRefused(Reply(response.status, returned(response), content))
            yield completion(content)
            return
        reader = EventReader()
        async for part in response.content.iter_any():
            for data in reader.feed(part):
                if each := chunk_in(data):
                    if error := error_in(each):
                        raise Refused(error.status, error.message)
                    yield each


def _choice(exchange: Exchange, written: Written) -> dict[str, Any]:
    """The choice with all of the answer in it."""
    turns = written.turns
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": ""}}
    exchange.finish_turns(choice, turns, turns.upstream)
    choice["finish_reason"] = written.reason if turns.over and written.reason else "stop"
    choice["aligner"]["upstream_requests"] = written.requests
    return choice


def _whole(exchange: Exchange, written: Written) -> dict[str, Any]:
    return {**written.head, "object": "chat.completion", "choices": [_choice(exchange, written)]}


async def _events(
    exchange: Exchange,
    chat: Mapping[str, Any],
    first: asyncio.Future[str],
    texts: AsyncGenerator[str, None],
    written: Written,
) -> AsyncGenerator[bytes, None]:
    try:
        text = await first
        yield chunk(written.head, 0, {"role": "assistant", "content": text})
        async for each in texts:
            yield chunk(written.head, 0, {"content": each})
        choice = _choice(exchange, written)
        reason, note = choice["finish_reason"], choice["aligner"]
        yield chunk(written.head, 0, {}, finish_reason=reason, aligner=note)
        options = chat.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            yield usage_chunk(written.head)
        yield LAST
    except UpstreamRefused as refused:
        yield error_event(Refused(502, f"The upstream answers with status {refused.reply.status}."))
    except Exception as error:
        yield error_event(error)
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await texts.aclose()
