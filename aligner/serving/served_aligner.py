"""The Aligner of `aligner serve` behind OpenAI-compatible servers: prompts are made here and completed there, as a stream.

A request whose correction has not begun to stream is tried on another replica where one fails; of one that has, what was sent
cannot be taken back, so it fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from aligner.chat_api.dialogue import CandidateQuestions, longest_with_room
from aligner.chat_api.parameters import ModelParameters
from aligner.chat_api.replies import is_whole
from aligner.chat_api.streams import EventReader, chunk_in
from aligner.encoder import Encoder
from aligner.inference.corrector import Corrected, CorrectionRequest, NoRoom, Settings, room_for
from aligner.inference.served import length_of, sent_prompt
from aligner.prompts import PromptTemplate
from aligner.quality.edits import edits
from aligner.records import UserError
from aligner.serving.completions import (
    Ended,
    ReplicaFailed,
    checked,
    first_choice,
    mean_log_probability,
    tokens_in,
    whole_reply,
)
from aligner.serving.corrections import AnswerRequest, Done, Failed, TooLong, Unfinished, too_long
from aligner.serving.protocol import Refused
from aligner.serving.replicas import Replica, Replicas

T = TypeVar("T")
COMPLETIONS = "/completions"
INLINE = 10_000  # characters that are tokenised at once: milliseconds


class Prompt(NamedTuple):
    """A prompt as the server takes it, and the tokens that are left for the correction."""

    request: CorrectionRequest
    sent: str | list[int]
    room: int


@dataclass(frozen=True)
class ServedTicket:
    """An answer that waits for its correction."""

    aligner: ServedAligner
    request: AnswerRequest
    came: float = field(default_factory=time.monotonic)

    async def pieces(self) -> AsyncGenerator[str | Done, None]:
        """The text as it comes, piece by piece, then the result. Raises Failed where there is no correction."""
        async with aclosing(self.aligner.events(self, again=False)) as events:
            async for event in events:
                yield event

    async def done(self) -> Done:
        """The result. Nothing is sent before it, so that any failure is tried again elsewhere."""
        async with aclosing(self.aligner.events(self, again=True)) as events:
            async for event in events:
                if isinstance(event, Done):
                    return event
        raise AssertionError("a ticket ends with Done or Failed")


class ServedAligner:
    """An Aligner behind replicas. `model`: its name there; `positions`: tokens that it can have in all; `longest`: characters of a
    question with its answer."""

    def __init__(
        self,
        replicas: Replicas,
        model: str,
        template: PromptTemplate,
        encoder: Encoder,
        positions: int,
        settings: Settings,
        objectives: Mapping[str, str],
        longest: int = 100_000,
    ) -> None:
        self.replicas, self.model, self.template, self.objectives = replicas, model, template, objectives
        self.encoder, self.positions, self.settings, self.longest = encoder, positions, settings, longest
        self._parameters = ModelParameters(f"{model}, the Aligner,")
        self._tokenizer = asyncio.Lock()
        self._closing = False

    @property
    def about(self) -> Mapping[str, Any]:
        """Nothing: steering is for an Aligner in this process."""
        return {}

    def start(self) -> None:
        """Begin to look at servers that are down."""
        self.replicas.start()

    def is_alive(self) -> bool:
        """Whether it takes requests."""
        return not self._closing

    def waiting(self) -> int:
        """How many answers are being corrected."""
        return sum(replica.under_way for replica in self.replicas.all)

    def describe(self) -> dict[str, Any]:
        """The servers by number, without their addresses, for /health asks for no key."""
        state = [
            {"up": each.is_up, "under_way": each.under_way, "requests": each.requests, "failures": each.failures}
            for each in self.replicas.all
        ]
        return {"aligner_servers": state}

    def submit(self, request: AnswerRequest) -> ServedTicket:
        """An answer to correct."""
        return ServedTicket(self, request)

    async def stop(self) -> None:
        """Stop: requests under way fail."""
        self._closing = True
        await self.replicas.stop()

    async def check_likelihoods(self) -> None:
        """UserError where the servers do not tell how probable an answer is, as the gate needs. Its connections are closed."""
        request = AnswerRequest(CandidateQuestions([("user", "Is anybody there?")], [0]), "Yes.")
        try:
            await self._confidence(request, await self._prompt(request))
        except Failed as error:
            raise UserError(f"--mode gate: {error}") from None
        finally:
            await self.stop()

    async def events(self, ticket: ServedTicket, again: bool) -> AsyncGenerator[str | Done, None]:
        """Pieces of a correction, then the result. `again`: what came may be forgotten, so that a stream that broke off is tried
        elsewhere too. Raises Failed."""
        request, began, confidence = ticket.request, time.monotonic(), None
        prompt = await self._prompt(request)
        if request.threshold is not None:
            confidence = await self._confidence(request, prompt)
            if confidence >= request.threshold:
                yield request.answer
                yield await self._done(ticket, Corrected.unchanged(request.answer), began, confidence, True)
                return
        tried, why = set[int](), ""
        while replica := self.replicas.choose(tried):
            text, end = "", None
            try:
                async with aclosing(self._completion(replica, prompt)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, Ended):
                            end = piece
                        else:
                            text += piece
                            yield piece
            except ReplicaFailed as error:
                tried.add(id(replica))
                if text and not again:
                    raise Failed(f"the Aligner's server broke off ({error}).") from None
                why = str(error)
                continue
            assert end, "a completion ends with Ended or ReplicaFailed"
            if not text.strip() and not request.prefix:
                raise Failed("the Aligner made an empty correction.")
            corrected = Corrected(text, is_whole(end.reason), edits(request.answer, text))
            yield await self._done(ticket, corrected, began, confidence, False, end.tokens)
            return
        raise Failed(f"no server of the Aligner answers ({why}).")

    async def _done(
        self,
        ticket: ServedTicket,
        corrected: Corrected,
        began: float,
        confidence: float | None,
        left_alone: bool,
        tokens: int | None = None,
    ) -> Done:
        """The result. Its tokens are counted here where the server does not say how many there are."""
        if tokens is None:
            text = corrected.text
            tokens = await self._tokenised(len(text), length_of, self.encoder, text) + corrected.finished
        waited, took = began - ticket.came, time.monotonic() - began
        return Done(corrected, left_alone, confidence, tokens, waited, took)

    async def _tokenised(self, characters: int, work: Callable[..., T], *given: Any) -> T:
        """The result of what needs the tokenizer, which must not be used by several at once: of many characters in a thread, for
        others would wait. Raises Failed while shutting down."""
        async with self._tokenizer:
            if self._closing:
                raise Failed("the Aligner is shutting down.")
            if characters <= INLINE:
                return work(*given)
            return await asyncio.to_thread(work, *given)

    async def _prompt(self, request: AnswerRequest) -> Prompt:
        """With the longest question that leaves room for the correction. Raises TooLong, Unfinished."""
        made = await self._tokenised(len(request.questions[0]) + len(request.answer), self._fitting, request)
        if isinstance(made, UserError):
            raise (Unfinished if isinstance(made, NoRoom) else TooLong)(str(made))
        return made

    def _fitting(self, request: AnswerRequest) -> Prompt | UserError:
        # No tokenizer makes more tokens of a text than bytes, a prefix space and an end.
        bound = len(request.answer.encode()) + 2
        whole = self._with(request.questions[0], request, bound)
        if isinstance(whole, Prompt) and whole.room >= bound:
            return whole
        needed = length_of(self.encoder, request.answer) + 1 if len(request.answer) <= self.longest else bound
        enough = min(needed, self.settings.max_new_tokens)
        return longest_with_room(
            request.questions,
            lambda question: self._with(question, request, needed),
            lambda made: isinstance(made, Prompt) and made.room >= enough,
        )

    def _with(self, question: str, request: AnswerRequest, needed: int) -> Prompt | UserError:
        """The prompt with one of the questions, or why there is no room. needed: tokens of the answer as its own correction."""
        if fault := too_long(question, request.answer, self.longest):
            return fault
        asked = CorrectionRequest(question, request.answer, request.feedback, request.prefix)
        sent, length = sent_prompt(self.encoder, self.template, asked)
        room = room_for(self.settings, self.positions, length, needed)
        return room if isinstance(room, UserError) else Prompt(asked, sent, room)

    async def _completion(self, replica: Replica, prompt: Prompt) -> AsyncGenerator[str | Ended, None]:
        """A replica's text as it comes, then the reason of its end. Raises ReplicaFailed; Failed where any would refuse it."""
        request = {"prompt": prompt.sent, "max_tokens": prompt.room, "temperature": 0, "stream": True}
        reason = tokens = None
        replica.under_way += 1
        replica.requests += 1
        try:
            asked = self._asked(replica, {**request, "stream_options": {"include_usage": True}})
            async with aclosing(asked) as replies:
                async for reply in replies:  # to its end, so that the connection is used again
                    tokens = tokens_in(reply) or tokens
                    choice = first_choice(reply)
                    if text := choice.get("text"):
                        yield str(text)
                    reason = choice.get("finish_reason") or reason
        except ReplicaFailed:
            if reason is None:
                replica.failed()
                raise
        finally:
            replica.under_way -= 1
        if reason is None:
            replica.failed()
            raise ReplicaFailed("its stream has no end")
        replica.succeeded()
        yield Ended(str(reason), tokens)

    async def _asked(self, replica: Replica, request: Mapping[str, Any]) -> AsyncGenerator[Mapping[str, Any], None]:
        """The chunks of a reply, or a whole one. A parameter that the server refuses is left out from then on."""
        sent = self._parameters.adapt({"model": self.model, **request})
        while True:
            try:
                async with replica.client.open(COMPLETIONS, {}, sent) as response:
                    if response.status == 200 and response.content_type == "text/event-stream":
                        reader = EventReader()
                        async for part in response.content.iter_any():
                            for data in reader.feed(part):
                                if chunk := chunk_in(data):
                                    yield checked(chunk)
                        return
                    content = await replica.client.read(response)
            except Refused as error:
                raise ReplicaFailed(error.message) from None
            words = content.decode("utf-8", "replace")
            if response.status != 200 and self._parameters.learn(response.status, words, sent):
                sent = self._parameters.adapt(sent)
                continue
            yield whole_reply(response.status, content)
            return

    async def _confidence(self, request: AnswerRequest, prompt: Prompt) -> float:
        """The mean log-probability, in nats a token, of the answer as its own correction, end-of-text with it. Raises Failed."""
        size = len(prompt.request.question) + len(request.answer)
        ids, answer = await self._tokenised(size, self._pair, request, prompt)
        replica = self.replicas.choose()
        assert replica, "there is at least one"
        asked = {"prompt": ids + answer, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        try:
            async with aclosing(self._asked(replica, asked)) as replies:
                choice = first_choice(await anext(replies))
        except ReplicaFailed as error:
            replica.failed()
            raise Failed(f"the Aligner's server fails ({error}).") from None
        return mean_log_probability(choice, len(ids), len(answer))

    def _pair(self, request: AnswerRequest, prompt: Prompt) -> tuple[list[int], list[int]]:
        text = self.encoder.render(self.template, *prompt.request)
        [(ids, answer, _)] = self.encoder.pairs([text], [request.answer])
        return ids, answer
