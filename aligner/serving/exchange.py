"""The path of a request: to the upstream, its answer through the Aligner as the mode says, and back, whole or as a stream.

    always  the answer is corrected
    gate    it is left unchanged where the Aligner itself would have written it
    shadow  it goes back unchanged, and the correction is written to a file

A stream's text begins when the upstream's answer is whole, for a correction depends on all of it; until then comment lines keep the
client. What streams is the correction as it is decoded, or, where an answer may still have to take its place, all of it at its end.
In shadow mode the upstream's own stream goes through.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from aligner.chat_api.dialogue import CandidateQuestions, candidate_questions
from aligner.chat_api.parameters import refused_in
from aligner.chat_api.replies import is_whole
from aligner.chat_api.thoughts import FIELDS, split_message, with_text
from aligner.inference.continuing import ChatPrompt
from aligner.inference.guard import markers_of, wants_structure
from aligner.inference.turns import Turns
from aligner.serving.behind import ShadowQueue
from aligner.serving.corrections import AnswerCorrector, AnswerRequest, Done, Failed, Ticket, Unfinished
from aligner.serving.metrics import LayerMetrics
from aligner.serving.policy import Policy, refusal
from aligner.serving.protocol import LAST, Refused, chunk, completion, error_body, error_event, event, usage_chunk
from aligner.serving.shadow import ShadowLog
from aligner.serving.turns import action_of, figures_of, given_answer
from aligner.serving.untouched import untouched
from aligner.serving.upstream import Reply, UpstreamClient
from aligner.serving.waiting import kept_alive

CHAT = "/chat/completions"
GRACE = 1.0  # seconds in which a stream's error still has its status; then the headers are sent
SILENCE = 5.0  # seconds between two comments of a stream that waits
Choice = dict[str, Any]


class Exchange:
    """Upstream, worker and policy put together."""

    def __init__(
        self,
        name: str,
        upstream: UpstreamClient,
        worker: AnswerCorrector,
        policy: Policy,
        shadow: ShadowLog | None = None,
        metrics: LayerMetrics | None = None,
        chat_prompt: ChatPrompt | None = None,
    ) -> None:
        self.chat_prompt = chat_prompt  # with which the upstream's completions are asked to go on with an answer
        self.name, self.upstream, self.worker, self.policy, self.metrics = name, upstream, worker, policy, metrics
        kinds = ("corrected", "unchanged", "left_alone", "unfinished", "shadow", "failed", "dropped")
        self.counts = dict.fromkeys(kinds, 0)
        limits = policy.backlog, policy.backlog_characters
        self.behind = ShadowQueue(worker, shadow, policy.guard, policy.feedback, *limits, self.count)
        self._only_streams = set[Any]()  # models that refuse to answer without a stream

    def describe(self) -> dict[str, Any]:
        """The part of /health about corrections. It holds no text of a request. `unfinished_share`: of the answers that were to be
        corrected, those whose correction had no room, no end or the prompt's own markers in it."""
        prompt = self.worker.template.name
        tried = sum(self.counts[kind] for kind in ("corrected", "unchanged", "unfinished", "shadow"))
        share = round(self.counts["unfinished"] / tried, 4) if tried else 0.0
        about: dict[str, Any] = {"mode": self.policy.mode, "model": self.name, "prompt": prompt}
        about |= {"sentences": True} if self.policy.sentences else {}
        return {**about, "answers": self.counts, "unfinished_share": share, **self.worker.describe()}

    async def close(self) -> None:
        """Close: shadow corrections may take as long as any correction, then waiting requests fail."""
        await self.behind.close(self.policy.timeout)
        await self.worker.stop()
        await self.upstream.close()
        await self.behind.ended()

    async def ask_whole(self, path: str, body: dict[str, Any], caller: Mapping[str, str]) -> Reply:
        """The upstream's whole reply; as a stream from a model that refuses to answer otherwise."""
        model, body = body.get("model"), {name: v for name, v in body.items() if name != "stream_options"}
        if model not in self._only_streams:
            reply = await self.upstream.ask(path, caller, {**body, "stream": False})
            if not refused_in(reply.status, reply.content.decode("utf-8", "replace"), {"stream": False}):
                return reply
            self._only_streams.add(model)
        return await self.upstream.ask(path, caller, {**body, "stream": True})

    async def answer(self, chat: dict[str, Any], caller: Mapping[str, str]) -> Response:
        """The whole completion, with its answers corrected."""
        reply = await self.ask_whole(CHAT, chat, caller)
        if reply.status != 200:
            return Response(reply.content, reply.status, reply.headers)
        whole = completion(reply.content)
        for error in await asyncio.gather(*(self.whole(chat, choice) for choice in whole["choices"])):
            if error:
                raise error
        return JSONResponse(whole, headers={n: v for n, v in reply.headers.items() if n != "content-type"})

    async def whole(self, chat: Mapping[str, Any], choice: Choice) -> Refused | None:
        """Run through all pieces of a choice. An error is returned, so that the other choices are finished."""
        try:
            async for _ in self._pieces(chat, choice):
                pass
        except Refused as error:
            return error
        return None

    async def stream(self, chat: dict[str, Any], caller: Mapping[str, str]) -> ASGIApp:
        """The completion as server-sent events. The client has its first byte after GRACE seconds, whenever the answer comes."""
        if self.policy.mode == "shadow":
            return await self.through(CHAT, chat, caller)
        pending = asyncio.ensure_future(self.ask_whole(CHAT, chat, caller))
        try:
            await asyncio.wait({pending}, timeout=GRACE)
        except asyncio.CancelledError:
            pending.cancel()
            raise
        if pending.done() and (reply := pending.result()).status != 200:
            return Response(reply.content, reply.status, reply.headers)
        if pending.done():
            completion(pending.result().content)  # an error in it still gets its status
        headers = {n: v for n, v in pending.result().headers.items() if n != "content-type"} if pending.done() else None
        events = kept_alive(self._events(chat, pending), SILENCE)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def _events(self, chat: Mapping[str, Any], pending: asyncio.Future[Reply]) -> AsyncGenerator[bytes, None]:
        try:
            reply = await pending
            if reply.status != 200:
                yield event(error_body(reply.status, reply.content))
                return
            whole = completion(reply.content)
            for choice in whole["choices"]:
                async with aclosing(self._chunks(chat, whole, choice)) as chunks:
                    async for each in chunks:
                        yield each
            options = chat.get("stream_options")
            if isinstance(options, dict) and options.get("include_usage"):
                yield usage_chunk(whole)
            yield LAST
        except Exception as error:
            yield error_event(error)
        finally:
            pending.cancel()

    async def _chunks(
        self, chat: Mapping[str, Any], whole: dict[str, Any], choice: Choice
    ) -> AsyncGenerator[bytes, None]:
        """A choice as chunks: what was thought first, as it is in a whole message, then what is said, then its other fields."""
        index, message = choice.get("index", 0), choice.get("message")
        message = message if isinstance(message, dict) else {}
        thoughts = {name: message[name] for name in FIELDS if message.get(name)}
        content = message.get("content")
        if isinstance(content, str) and (thought := split_message({"content": content}).thought):
            beside = message.get("reasoning_content")
            thoughts["reasoning_content"] = f"{beside}\n{thought}" if beside and isinstance(beside, str) else thought
        yield chunk(whole, index, {"role": "assistant", "content": "", **thoughts})
        async with aclosing(self._pieces(chat, choice)) as pieces:
            async for piece in pieces:
                yield chunk(whole, index, {"content": piece})
        rest = {name: v for name, v in message.items() if name not in ("role", "content", *FIELDS) and v}
        if isinstance(calls := rest.get("tool_calls"), list):  # which in a stream are pieces of a numbered call
            rest["tool_calls"] = [{"index": number, **call} for number, call in enumerate(calls)]
        more = {name: v for name, v in choice.items() if name not in ("index", "message", "finish_reason")}
        yield chunk(whole, index, rest, finish_reason=choice.get("finish_reason"), **more)

    async def _pieces(self, chat: Mapping[str, Any], choice: Choice) -> AsyncGenerator[str, None]:
        """The text of a choice as it is decoded; then the choice holds all of it. Raises Refused (503) where the Aligner fails."""
        message = choice.get("message")
        original = split_message(message).text if isinstance(message, dict) else ""
        if self.policy.mode == "shadow":
            if is_whole(choice.get("finish_reason")):
                self.behind.add(chat, message)
            choice["aligner"] = self._note("shadow" if original.strip() else "no_text", original)
            return
        if isinstance(message, dict) and split_message({"content": message.get("content")}).thought:
            choice["message"] = with_text(message, original)  # no thought is ever the answer
        if not original.strip():
            choice["aligner"] = self._note("no_text", original)
            return
        if reason := self._left_alone(chat, choice, original):
            self.count("left_alone")
            choice["aligner"] = {**self._note("left_alone", original), "reason": reason}
            yield original
            return
        async with aclosing(self._corrected(candidate_questions(chat["messages"]), choice, original)) as pieces:
            async for piece in pieces:
                yield piece

    def _left_alone(self, chat: Mapping[str, Any], choice: Choice, original: str) -> str | None:
        """Why an answer is not to be corrected, known before it is decoded."""
        guard, message = self.policy.guard, choice["message"]
        if not guard.correct_structured:
            if wants_structure(chat):
                return "structured output was asked for"
            if message.get("tool_calls") or message.get("function_call"):
                return "it stands beside a tool call"
        keep = guard.before(original)
        return keep.reason if keep else None

    async def _corrected(
        self, questions: CandidateQuestions, choice: Choice, original: str
    ) -> AsyncGenerator[str, None]:
        """The correction piece by piece, or at once at its end where the answer may have to take its place."""
        if self.policy.sentences:
            turns = Turns(pending=original, ended=True, given=True)
            async for text in given_answer(self.worker, self.policy, questions, turns):
                yield text
            self.finish_turns(choice, turns, original)
            return
        held = self.policy.on_failure == "open" or self.policy.guard.needs_all(original)
        sent, deadline = False, asyncio.get_running_loop().time() + self.policy.timeout
        ticket = self._ticket(questions, original)
        try:
            if held:
                async with asyncio.timeout_at(deadline):
                    whole = await ticket.done()
                yield self._finish(choice, questions[0], original, whole)
                return
            async with aclosing(ticket.pieces()) as pieces:
                while True:
                    async with asyncio.timeout_at(deadline):  # not around the yield: it would cancel who reads
                        piece = await anext(pieces)
                    if isinstance(piece, Done):
                        self._finish(choice, questions[0], original, piece)
                        return
                    if piece:
                        sent = True
                        yield piece
        except (Failed, TimeoutError) as error:
            why = str(error) or f"the Aligner did not finish within {self.policy.timeout:g} seconds."
            self.count("unfinished" if isinstance(error, Unfinished) else "failed")
            if self.policy.on_failure == "closed" or sent:  # what was sent cannot be taken back
                raise refusal(error, why[0].upper() + why[1:]) from None
            choice["aligner"] = {**self._note("failed_open", original), "error": why}
            yield original

    def _ticket(self, questions: CandidateQuestions, original: str) -> Ticket:
        return self.worker.submit(AnswerRequest(questions, original, self.policy.feedback, self.policy.gate))

    def finish_turns(self, choice: Choice, turns: Turns, original: str) -> None:
        """Put what was written sentence by sentence into the choice."""
        action = action_of(turns)
        self.count("failed" if action == "failed_open" else action)
        choice["message"] = with_text(choice["message"], turns.said)
        choice["aligner"] = self._note(action, original) | figures_of(turns, original)

    def _finish(self, choice: Choice, question: str, original: str, done: Done) -> str:
        """Put the correction into the choice, unless the answer stays; the text that is in it then. Raises Unfinished where it is
        no correction."""
        corrected, action, reason = done.corrected, "corrected", None
        markers = markers_of(done.template or self.worker.template)
        if done.left_alone:
            action, reason = "left_alone", done.why
        elif keep := self.policy.guard.after(corrected, question, original, markers):
            if keep.failed:
                raise Unfinished(keep.reason + ".")
            action, reason = "left_alone", keep.reason
        elif corrected.edits.identical:
            action = "unchanged"
        self.count(action, done)
        rounded = {name: v if isinstance(v, bool) else round(v, 4) for name, v in asdict(corrected.edits).items()}
        seconds = {"waited": round(done.waited, 3), "took": round(done.took, 3)}
        choice["aligner"] = {**self._note(action, original), **done.about, "edits": rounded}
        choice["aligner"] |= {"tokens": done.tokens, "seconds": seconds}
        choice["aligner"] |= {"reason": reason} if reason else {}
        if done.confidence is not None:
            choice["aligner"] |= {"confidence": round(done.confidence, 4), "threshold": self.policy.threshold}
        if action == "left_alone":
            return original
        choice["message"] = with_text(choice["message"], corrected.text)
        if choice.get("finish_reason") in (None, "stop", "length"):  # other reasons concern more than the text
            # Cut off by the Aligner's limit, or by the upstream's.
            cut = not corrected.finished or choice.get("finish_reason") == "length"
            choice["finish_reason"] = "length" if cut else "stop"
        if choice.get("logprobs"):  # they belong to the upstream's tokens
            choice["logprobs"] = None
        return corrected.text

    def count(self, action: str, done: Done | None = None) -> None:
        """Count an answer by what was done with it."""
        self.counts[action] += 1
        if self.metrics:
            self.metrics.count(action, done)

    def _note(self, action: str, original: Any) -> dict[str, Any]:
        about = {"model": self.name, "prompt": self.worker.template.name, "mode": self.policy.mode, **self.worker.about}
        return {"action": action, "original": original, **about}

    async def through(self, path: str, chat: dict[str, Any], caller: Mapping[str, str], reason: str = "") -> ASGIApp:
        """The upstream's own answer, byte for byte; whole answers of a chat go to the shadow file."""
        queue = self.behind if path == CHAT else None
        return await untouched(self.upstream, queue, path, chat, caller, reason)
