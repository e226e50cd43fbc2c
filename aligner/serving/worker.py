"""The Aligner in one thread, which batches what waits: a row that comes in is read with the next forward pass of the others."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from aligner.chat_api.dialogue import longest_with_room
from aligner.inference.corrector import Corrected, Corrector, NoRoom
from aligner.inference.greedy import DecoderRow
from aligner.inference.text_stream import TextStream
from aligner.prompts import PromptTemplate
from aligner.records import UserError
from aligner.serving.corrections import AnswerRequest, Done, Failed, TooLong, Unfinished, too_long
from aligner.serving.gate import confidence

log = logging.getLogger("aligner")


@dataclass
class Ticket:
    """An answer that waits for its correction."""

    request: AnswerRequest
    events: asyncio.Queue[str | Done | Failed]
    loop: asyncio.AbstractEventLoop
    came: float = field(default_factory=time.monotonic)
    began: float = 0.0
    confidence: float | None = None
    text: TextStream | None = None  # the part of the correction that was sent
    abandoned: bool = False

    async def pieces(self) -> AsyncGenerator[str | Done, None]:
        """The text as it is decoded, piece by piece, then the result. Raises Failed where there is no correction."""
        try:
            while True:
                event = await self.events.get()
                if isinstance(event, Failed):
                    raise event
                yield event
                if isinstance(event, Done):
                    return
        finally:
            self.abandoned = True

    async def done(self) -> Done:
        """The result. Raises Failed where there is no correction."""
        async for event in self.pieces():
            if isinstance(event, Done):
                return event
        raise AssertionError("a ticket ends with Done or Failed")

    def say(self, event: str | Done | Failed) -> None:
        """Pass an event to the waiting request, from the worker's thread."""
        if not self.abandoned and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class Worker:
    """One thread that owns model and tokenizer. Tickets come in from the event loop and are answered there.

    `longest`: characters of a question with its answer; more are not even tokenised, which others would wait for.
    """

    def __init__(self, corrector: Corrector, longest: int = 100_000) -> None:
        self.corrector, self.longest = corrector, longest
        self._waiting: SimpleQueue[Ticket | None] = SimpleQueue()
        self._active: dict[int, Ticket] = {}
        self._count = 0
        self._closing = False
        self._first: Ticket | None = None  # taken from the queue, not yet a row
        self._thread = threading.Thread(target=self._run, name="aligner", daemon=True)

    @property
    def template(self) -> PromptTemplate:
        """The prompt that it was trained with."""
        return self.corrector.template

    @property
    def objectives(self) -> Mapping[str, str]:
        """Those that it can be asked for by name, with their sentences."""
        return self.corrector.objectives

    @property
    def about(self) -> Mapping[str, Any]:
        """How it is steered, where it is."""
        return {"steered": self.corrector.steered} if self.corrector.steered else {}

    def describe(self) -> dict[str, Any]:
        """The part of /health about it alone."""
        return dict(self.about)

    def start(self) -> None:
        """Start the thread. Forward passes are timed first, so that no request waits for that."""
        if self.corrector.decoder:
            self.corrector.decoder.cost = self.corrector.decoder.measure()
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether it takes requests."""
        return self._thread.is_alive() and not self._closing

    def waiting(self) -> int:
        """How many answers wait or are being corrected."""
        return self._waiting.qsize() + len(self._active)

    def submit(self, request: AnswerRequest) -> Ticket:
        """Queue an answer for correction, from the event loop."""
        ticket = Ticket(request, asyncio.Queue(), asyncio.get_running_loop())
        if self.is_alive():
            self._waiting.put(ticket)
        else:
            ticket.events.put_nowait(Failed("the Aligner is shutting down."))
        return ticket

    def close(self) -> None:
        """Stop: waiting requests fail. Returns when the current forward pass has ended."""
        self._closing = True
        self._waiting.put(None)
        self._thread.join()

    async def stop(self) -> None:
        """The same, from the event loop."""
        await asyncio.to_thread(self.close)

    def _run(self) -> None:
        while (ticket := self._waiting.get()) is not None and not self._closing:
            self._first = ticket
            try:
                self._work()
            except Exception:  # the end of these answers, not of the worker
                log.exception("the Aligner failed on %d answers", len(self._active))
                self._fail(Failed("the Aligner failed; the server's log says how."))
        self._fail(Failed("the Aligner is shutting down."))

    def _work(self) -> None:
        """Correct until nothing waits."""
        decoder, size = self.corrector.decoder, self.corrector.settings.batch_size
        if decoder and not self.corrector.settings.sampling:
            for rows in decoder.advance(self._new, size, self._dropped):
                for row in rows:
                    self._tell(row, row.has_ended(decoder.eos))
            return
        while rows := self._new(size):
            for row in self.corrector.generated(iter(rows), self._is_gone):
                self._tell(row, ended=True)

    def _new(self, most: int) -> list[DecoderRow]:
        """Rows of at most so many of the waiting; those that are answered at once count too, for each takes a pass of its own."""
        rows: list[DecoderRow] = []
        for _ in range(most):
            if self._closing:
                break
            try:
                ticket = self._first or self._waiting.get_nowait()
            except Empty:
                break
            self._first = None
            if ticket is None:
                self._closing = True
            elif not ticket.abandoned and (row := self._admit(ticket)):
                rows.append(row)
        return rows

    def _is_gone(self, row: DecoderRow) -> bool:
        """Whether nobody waits for a row any more."""
        return self._closing or self._active[row.index].abandoned

    def _dropped(self, row: DecoderRow) -> bool:
        """The same; a row that is gone is forgotten."""
        if gone := self._is_gone(row):
            self._active.pop(row.index).say(Failed("the Aligner is shutting down."))
        return gone

    def _admit(self, ticket: Ticket) -> DecoderRow | None:
        """A ticket's row; None where it is answered at once."""
        ticket.began = time.monotonic()
        self._count += 1
        self._active[self._count] = ticket  # from here on it gets a result whatever happens
        try:
            row = self._row(ticket)
        except UserError as error:
            del self._active[self._count]
            ticket.say((Unfinished if isinstance(error, NoRoom) else TooLong)(str(error)))
            return None
        if ticket.abandoned:
            del self._active[self._count]
            return None
        if ticket.request.threshold is not None:
            ticket.confidence = confidence(self.corrector.model, row.prompt, row.answer)
            if ticket.confidence >= ticket.request.threshold:
                row.output = list(row.answer)
                self._tell(row, ended=True, left_alone=True)
                return None
        return row

    def _row(self, ticket: Ticket) -> DecoderRow:
        """With the longest question that leaves the correction as much room as the answer has."""
        most = self.corrector.settings.max_new_tokens
        row = longest_with_room(
            ticket.request.questions,
            lambda question: self._with(ticket, question),
            lambda made: isinstance(made, DecoderRow) and made.most >= min(len(made.answer), most),
        )
        if isinstance(row, UserError):
            raise row
        return row

    def _with(self, ticket: Ticket, question: str) -> DecoderRow | UserError:
        """A ticket's row with one of its questions, if it has room and anybody waits for it."""
        if fault := too_long(question, ticket.request.answer, self.longest):
            return fault
        if ticket.abandoned:
            return UserError("nobody waits for it.")
        fields = question, ticket.request.answer, ticket.request.feedback, ticket.request.prefix
        prompt = self.corrector.encoder.render(self.corrector.template, *fields)
        [(ids, answer, _)] = self.corrector.encoder.pairs([prompt], [ticket.request.answer])
        return self.corrector.row(ids, answer, self._count)

    def _tell(self, row: DecoderRow, ended: bool, left_alone: bool = False) -> None:
        ticket = self._active[row.index]
        if ticket.abandoned or self._closing:
            row.most = len(row.output)  # the decoder drops it
            del self._active[row.index]
            ticket.say(Failed("the Aligner is shutting down."))
            return
        if ended:
            del self._active[row.index]
            whole = self.corrector.corrected(row, ticket.request.answer)
            if left_alone:  # as it was written, whatever the tokenizer makes of it
                whole = Corrected.unchanged(ticket.request.answer)
            if not whole.text.strip() and not ticket.request.prefix:  # an empty answer helps no one
                ticket.say(Failed("the Aligner made an empty correction."))
                return
            ticket.say(whole.text[len(ticket.text.text) if ticket.text else 0 :])
            now = time.monotonic()
            ticket.say(
                Done(
                    whole,
                    left_alone,
                    ticket.confidence,
                    len(row.output),
                    ticket.began - ticket.came,
                    now - ticket.began,
                )
            )
            return
        ticket.text = ticket.text or TextStream(self.corrector.text)
        ticket.say(ticket.text.feed(row.output))

    def _fail(self, why: Failed) -> None:
        """Fail all requests in progress; while closing, those that wait too."""
        for ticket in self._active.values():
            ticket.say(why)
        self._active.clear()
        if self._first:
            self._first.say(why)
            self._first = None
        while self._closing and not self._waiting.empty():
            waiting = self._waiting.get()
            if waiting:
                waiting.say(why)
