"""The path of a request: to the upstream, its answer through the Aligner as the mode says, and back, whole or as a stream.

    always  the answer is corrected
    gate    it is left unchanged where the Aligner itself would have written it
    shadow  it goes back unchanged, and the correction is written to a file

A stream begins when the upstream's answer is whole, for a correction depends on all of it; what streams is the correction as it
is decoded. In shadow mode the upstream's own stream goes through.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientResponse
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from aligner.serving.dialogue import CandidateQuestions, candidate_questions, message_text
from aligner.serving.metrics import Metrics
from aligner.serving.protocol import LAST, Refused, chunk, completion, event, json_answer, usage_chunk
from aligner.serving.shadow import ShadowLog
from aligner.serving.sse import BlottedLines, StreamedText
from aligner.serving.upstream import UpstreamClient, returned
from aligner.serving.worker import Done, Failed, Ticket, TooLong, Worker

log = logging.getLogger("aligner")
CHAT = "/chat/completions"
Choice = dict[str, Any]


@dataclass(frozen=True)
class Policy:
    """What happens to an answer. `mode`: always, gate, shadow. `threshold`: the gate's, in nats a token. `on_failure`: closed
    (an error) or open (the upstream's answer, flagged). `timeout`: seconds that a correction may take. `backlog`: answers that may
    wait for their shadow, `backlog_characters` their characters together."""

    mode: str = "always"
    threshold: float | None = None
    on_failure: str = "closed"
    feedback: str = ""
    timeout: float = 60
    backlog: int = 256
    backlog_characters: int = 8_000_000


class Exchange:
    """Upstream, worker and policy put together."""

    def __init__(
        self,
        name: str,
        upstream: UpstreamClient,
        worker: Worker,
        policy: Policy,
        shadow: ShadowLog | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.metrics = metrics
        self.name, self.upstream, self.worker, self.policy, self._shadow = name, upstream, worker, policy, shadow
        self._behind = set[asyncio.Task[None]]()  # shadows under way
        self._held = 0  # characters that wait for their shadow
        self.counts = {"corrected": 0, "unchanged": 0, "left_alone": 0, "shadow": 0, "failed": 0, "dropped": 0}

    def describe(self) -> dict[str, Any]:
        """The part of /health about corrections. It holds no text of a request."""
        prompt = self.worker.corrector.template.name
        return {"mode": self.policy.mode, "model": self.name, "prompt": prompt, "answers": self.counts}

    async def close(self) -> None:
        """Close: shadow corrections may take as long as any correction, then waiting requests fail."""
        if self._behind:
            await asyncio.wait(self._behind, timeout=self.policy.timeout)
        await asyncio.to_thread(self.worker.close)
        await asyncio.gather(*self._behind, return_exceptions=True)
        await self.upstream.close()
        if self._shadow:
            self._shadow.close()

    async def answer(self, chat: dict[str, Any], caller: Mapping[str, str]) -> Response:
        """The whole completion, with its answers corrected."""
        reply = await self.upstream.ask(CHAT, caller, {**chat, "stream": False})
        if reply.status != 200:
            return Response(reply.content, reply.status, reply.headers)
        whole = completion(reply.content)
        for error in await asyncio.gather(*(self._whole(chat, choice) for choice in whole["choices"])):
            if error:
                raise error
        return JSONResponse(whole, headers={n: v for n, v in reply.headers.items() if n == "x-request-id"})

    async def _whole(self, chat: Mapping[str, Any], choice: Choice) -> Refused | None:
        """Run through all pieces of a choice. An error is returned, so that the other choices are finished."""
        try:
            async for _ in self._pieces(chat, choice):
                pass
        except Refused as error:
            return error
        return None

    async def stream(self, chat: dict[str, Any], caller: Mapping[str, str]) -> ASGIApp:
        """The completion as server-sent events."""
        if self.policy.mode == "shadow":
            return await self._through(chat, caller)
        body = {name: value for name, value in chat.items() if name != "stream_options"}
        reply = await self.upstream.ask(CHAT, caller, {**body, "stream": False})
        if reply.status != 200:
            return Response(reply.content, reply.status, reply.headers)
        whole = completion(reply.content)
        options = chat.get("stream_options")
        usage = isinstance(options, dict) and bool(options.get("include_usage"))
        return StreamingResponse(self._events(chat, whole, usage), media_type="text/event-stream")

    async def _events(self, chat: Mapping[str, Any], whole: dict[str, Any], usage: bool) -> AsyncGenerator[bytes, None]:
        try:
            for choice in whole["choices"]:
                index = choice.get("index", 0)
                yield chunk(whole, index, {"role": "assistant", "content": ""})
                async with aclosing(self._pieces(chat, choice)) as pieces:
                    async for piece in pieces:
                        yield chunk(whole, index, {"content": piece})
                rest = {name: v for name, v in choice["message"].items() if name not in ("role", "content") and v}
                if calls := rest.get("tool_calls"):  # which in a stream are pieces of a numbered call
                    rest["tool_calls"] = [{"index": number, **call} for number, call in enumerate(calls)]
                yield chunk(whole, index, rest, finish_reason=choice.get("finish_reason"), aligner=choice["aligner"])
            if usage:
                yield usage_chunk(whole)
            yield LAST
        except Refused as error:  # the status has been sent: an error in the stream is what is left
            yield event(error.body())
        except Exception as error:
            log.exception("a stream failed")
            yield event(Refused(500, f"The server failed ({type(error).__name__}).").body())

    async def _pieces(self, chat: Mapping[str, Any], choice: Choice) -> AsyncGenerator[str, None]:
        """The text of a choice as it is decoded; then the choice holds all of it. Raises Refused (503) where the Aligner fails."""
        original, questions = message_text(choice["message"].get("content")), candidate_questions(chat["messages"])
        if not original.strip():
            choice["aligner"] = self._note("no_text", original)
            return
        if self.policy.mode == "shadow":
            self._behind_it(questions, original, chat.get("model"))
            choice["aligner"] = self._note("shadow", original)
            return
        sent_text, deadline = "", asyncio.get_running_loop().time() + self.policy.timeout
        try:
            async with aclosing(self._ticket(questions, original).pieces()) as pieces:
                while True:
                    async with asyncio.timeout_at(deadline):  # not around the yield: it would cancel who reads
                        piece = await anext(pieces)
                    if isinstance(piece, Done):
                        self._finish(choice, original, piece)
                        return
                    if piece:
                        sent_text += piece
                        yield piece
        except (Failed, TimeoutError) as error:
            why = str(error) or f"the Aligner did not finish within {self.policy.timeout:g} seconds."
            self._count("failed")
            if self.policy.on_failure == "closed" or sent_text:  # what was sent cannot be taken back
                why = why[0].upper() + why[1:]
                if isinstance(error, TooLong):  # again would be the same
                    raise Refused(400, why, "context_length_exceeded") from None
                raise Refused(503, why) from None
            choice["aligner"] = {**self._note("failed_open", original), "error": why}
            yield original

    def _ticket(self, questions: CandidateQuestions, original: str) -> Ticket:
        threshold = self.policy.threshold if self.policy.mode == "gate" else None
        return self.worker.submit(questions, original, self.policy.feedback, threshold)

    def _finish(self, choice: Choice, original: str, done: Done) -> None:
        """Put the correction into the choice."""
        corrected = done.corrected
        action = "left_alone" if done.left_alone else "unchanged" if corrected.edits.identical else "corrected"
        self._count(action, done)
        rounded = {name: v if isinstance(v, bool) else round(v, 4) for name, v in asdict(corrected.edits).items()}
        seconds = {"waited": round(done.waited, 3), "took": round(done.took, 3)}
        choice["aligner"] = self._note(action, original) | {
            "edits": rounded,
            "tokens": done.tokens,
            "seconds": seconds,
        }
        if done.confidence is not None:
            choice["aligner"] |= {"confidence": round(done.confidence, 4), "threshold": self.policy.threshold}
        if not done.left_alone:
            choice["message"]["content"] = corrected.text
            if choice.get("finish_reason") in (None, "stop", "length"):  # other reasons concern more than the text
                # Cut off by the Aligner's limit, or by the upstream's.
                cut = not corrected.finished or choice.get("finish_reason") == "length"
                choice["finish_reason"] = "length" if cut else "stop"
            if choice.get("logprobs"):  # they belong to the upstream's tokens
                choice["logprobs"] = None

    def _count(self, action: str, done: Done | None = None) -> None:
        """Count an answer by what was done with it."""
        self.counts[action] += 1
        if self.metrics:
            self.metrics.answers.labels(action).inc()
        if self.metrics and done:
            self.metrics.tokens.inc(done.tokens)
            self.metrics.waited.observe(done.waited)
            self.metrics.took.observe(done.took)

    def _note(self, action: str, original: Any) -> dict[str, Any]:
        prompt = self.worker.corrector.template.name
        return {"action": action, "original": original, "model": self.name, "prompt": prompt, "mode": self.policy.mode}

    async def _through(self, chat: dict[str, Any], caller: Mapping[str, str]) -> ASGIApp:
        """The upstream's own stream, unchanged; its text goes to the shadow file. The upstream is awaited here, where a client
        that disconnects is noticed."""
        async with AsyncExitStack() as opening:
            response = await opening.enter_async_context(self.upstream.open(CHAT, caller, chat))
            opened = opening.pop_all()

        async def parts(response: ClientResponse) -> AsyncGenerator[bytes, None]:
            streamed, blotted = StreamedText(self.worker.longest), BlottedLines()
            try:
                async for part in response.content.iter_any():
                    streamed.feed(part)
                    if lines := blotted.feed(part):
                        yield lines
                yield blotted.rest()
            except (
                ClientError,
                TimeoutError,
            ) as error:  # the status has been sent: an error in the stream is what is left
                yield event(Refused(502, f"The upstream broke off ({type(error).__name__}).").body())
                return
            if streamed.is_too_long:
                self._count("dropped")
            for text in streamed.texts():
                self._behind_it(candidate_questions(chat["messages"]), text, chat.get("model"))

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            async with opened:
                answer: Response
                if response.status != 200:
                    content = await self.upstream.read(response)
                    content = json_answer(response.status, content, response.content_type)
                    answer = Response(content, response.status, returned(response))
                elif response.content_type == "text/event-stream":
                    answer = StreamingResponse(parts(response), media_type="text/event-stream")
                else:  # it does not stream: its answer as it is, if it is one
                    whole = completion(await self.upstream.read(response))
                    for choice in whole["choices"]:
                        await self._whole(chat, choice)
                    answer = JSONResponse(whole)
                await answer(scope, receive, send)

        async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await respond(scope, receive, send)
            except Refused as error:  # before anything was sent: reading what is no stream may fail
                await error.response()(scope, receive, send)

        return refusing

    def _behind_it(self, questions: CandidateQuestions, original: str, model: Any) -> None:
        """Queue the correction of an answer that was already sent back."""
        size = len(questions[0]) + len(original)
        full = len(self._behind) >= self.policy.backlog or self._held + size > self.policy.backlog_characters
        if full or size > self.worker.longest:
            self._count("dropped")
            if self.counts["dropped"] == 1:
                log.warning("more answers come than the Aligner corrects: some are not written to the shadow file")
            return
        task = asyncio.create_task(self._log(questions, original, model))
        self._behind.add(task)
        self._held += size

        def ended(task: asyncio.Task[None]) -> None:
            self._behind.discard(task)
            self._held -= size

        task.add_done_callback(ended)

    async def _log(self, questions: CandidateQuestions, original: str, model: Any) -> None:
        assert self._shadow
        try:
            done = await self.worker.submit(questions, original, self.policy.feedback).done()
            self._shadow.add(
                questions[0], original, done.corrected.text, upstream=model, finished=done.corrected.finished
            )
            self._count("shadow", done)
        except Failed:
            self._count("failed")
        except OSError as error:
            self._count("dropped")
            log.warning("%s: a row cannot be written (%s)", Path(self._shadow.file), error.strerror)
