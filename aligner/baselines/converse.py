"""Many conversations at once: what they ask is put together by who replies, and every reply is kept before it is used.

A method sees its kept replies again in the same order, so that a run that was killed goes on where it was, and pays for no reply
twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from aligner.baselines.methods import Method, MethodSettings, behind_aligner
from aligner.baselines.protocol import (
    ALIGNER,
    REWARD,
    UPSTREAM,
    Cost,
    Outcome,
    Question,
    Reply,
    Request,
    Responder,
    Steps,
    Usage,
    added,
    payee_of,
)
from aligner.records import UserError

ORDER = (UPSTREAM, REWARD, ALIGNER)  # nobody is needed again after the next one, so that one model is open at a time
Open = Mapping[str, Callable[[], Responder]]
Progress = Callable[..., Any]


class Store(Protocol):
    """Where replies are kept: by a kind (who replied, and the number of the request in its row) and a row."""

    done: dict[tuple[str, int], Any]

    def add(self, kind: str, row: int, value: Any) -> None:
        """Keep a reply."""


@dataclass
class Memory:
    """Replies that are kept for as long as the program runs."""

    done: dict[tuple[str, int], Any] = field(default_factory=dict)

    def add(self, kind: str, row: int, value: Any) -> None:
        """Keep a reply."""
        self.done[kind, row] = value


@dataclass
class Conversation:
    """A method under way on a row: what it asks now, how much it has asked before, and what came of it."""

    row: int
    steps: Steps
    requests: list[Request] = field(default_factory=list)
    number: int = 0
    cost: dict[str, Usage] = field(default_factory=dict)
    outcome: Outcome | UserError | None = None

    def keys(self) -> Iterator[tuple[str, int]]:
        """Under what the replies to its requests are kept, in order."""
        for place, request in enumerate(self.requests):
            yield f"{payee_of(request)} {self.number + place}", self.row

    def advance(self, replies: list[Reply] | None) -> None:
        """Give the method its replies (None: begin). Requests of nothing are answered with nothing."""
        while True:
            try:
                self.requests = next(self.steps) if replies is None else self.steps.send(replies)
            except StopIteration as end:
                self.requests, self.outcome = [], end.value
                return
            if self.requests:
                return
            replies = []

    def take(self, store: Store) -> None:
        """Go on with the replies that are kept. One that the server refused ends the row."""
        values = [store.done[key] for key in self.keys()]
        if refused := [value["refused"] for value in values if "refused" in value]:
            self.outcome = UserError(refused[0])
            return
        replies = [Reply(**{**value, "usage": Usage(**value["usage"])}) for value in values]
        paid = [{payee_of(request): reply.usage} for request, reply in zip(self.requests, replies, strict=True)]
        self.cost = added(self.cost, *paid)
        self.number += len(replies)
        self.advance(replies)


def converse(conversations: Sequence[Conversation], open_responder: Open, store: Store, progress: Progress) -> None:
    """Carry on all conversations to their ends. ServerGone where a server cannot be used: what came is kept."""
    for each in conversations:
        each.advance(None)
    current: tuple[str, Responder] | None = None
    while talking := [each for each in conversations if each.outcome is None]:
        payee = min((payee_of(each.requests[0]) for each in talking), key=ORDER.index)
        some = [each for each in talking if payee_of(each.requests[0]) == payee]
        wanted = [
            (key, request)
            for each in some
            for key, request in zip(each.keys(), each.requests, strict=True)
            if key not in store.done
        ]
        if wanted:
            if current is None or current[0] != payee:
                current = None  # one model is freed before the next is opened
                current = payee, open_responder[payee]()
            stream = current[1].stream([request for _, request in wanted])
            for place, reply in progress(stream, total=len(wanted), desc=payee):
                value = {"refused": str(reply)} if isinstance(reply, UserError) else asdict(reply)
                kind, row = wanted[place][0]
                store.add(kind, row, value)
        for each in some:
            each.take(store)


def begin(row: int, question: Question, method: Method, settings: MethodSettings, aligner: bool) -> Conversation:
    """A row's conversation, with or without an Aligner behind the method."""
    steps = method(question, settings)
    return Conversation(row, behind_aligner(steps, question) if aligner else steps)


def answer(
    method: Method, question: Question, settings: MethodSettings, responders: Mapping[str, Responder]
) -> tuple[Outcome, Cost]:
    """One question by one method: what came of it, and what it cost. With an Aligner among the responders, that behind it.

    UserError where the server refuses it.
    """
    one = begin(0, question, method, settings, ALIGNER in responders)
    opened = {payee: (lambda responder=responder: responder) for payee, responder in responders.items()}
    converse([one], opened, Memory(), lambda stream, **_: stream)
    if isinstance(one.outcome, UserError):
        raise one.outcome
    assert one.outcome is not None
    return one.outcome, added(one.cost, one.outcome.carried)
