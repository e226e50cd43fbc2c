"""Models that answer and correct: every reply is kept before it is used, and no more money is spent than the cap allows.

A reply is kept under a digest of all that decides it: so it is never paid for again, whatever is added to the questions, and
whichever run asked for it. Where the model is served does not count.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from aligner.baselines.converse import Conversation, Progress, converse
from aligner.baselines.protocol import UPSTREAM, ChatRequest, Reply, Responder, Usage
from aligner.baselines.served import ServedUpstream
from aligner.building.config import ModelConfig, Price
from aligner.building.stage import fingerprint_of
from aligner.inference.servers import Client, Server, ServerGone
from aligner.jsonl import LineLog
from aligner.parsing import json_value
from aligner.records import UserError

LETTERS_A_TOKEN = 4  # of English, about; used for estimates alone
FRAME = 16  # tokens that a chat's frame takes, about
FIRST_REPLIES = 20  # of which one at least must be of use


class ReplyJournal:
    """A file of JSON lines, (kind, row, value, model, cost), that only grows: the replies of all models. Who opens it holds the
    output's lock. spent: what they cost. What a server refused cost nothing and may have been its bad day: another run asks again.

    UserError where a line is damaged.
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._log, self.done, self.spent = LineLog(file), dict[tuple[str, int], Any](), 0.0
        for number, line in enumerate(self._log.lines, 1):
            try:
                fields = json_value(line)
                if "refused" not in fields["value"]:
                    self.done[fields["kind"], fields["row"]] = dict(fields["value"])
                self.spent += float(fields["cost"])
            except (ValueError, LookupError, TypeError):
                raise UserError(
                    f"{file} line {number}: is damaged. Remove that line; its reply is requested again."
                ) from None
        self._log.start()

    def add(self, kind: str, row: int, value: Any, model: str, cost: float) -> None:
        """Keep a reply of a model."""
        self.done[kind, row] = value
        self.spent += cost
        self._log.append({"kind": kind, "row": row, "value": value, "model": model, "cost": cost})

    def close(self) -> None:
        """Close the file."""
        self._log.close()


@dataclass
class RepliesOfModel:
    """Where one model's replies are kept, among all others."""

    journal: ReplyJournal
    model: ModelConfig
    done: dict[tuple[str, int], Any]

    def add(self, kind: str, row: int, value: Any) -> None:
        """Keep a reply; a refused one cost nothing."""
        cost = money_of(Usage(**value["usage"]), self.model.price) if "usage" in value else 0.0
        self.journal.add(kind, row, value, self.model.name, cost)


def money_of(usage: Usage, price: Price) -> float:
    """What replies cost."""
    return (usage.prompt_tokens * price.read + usage.completion_tokens * price.written) / 1e6


@dataclass
class Purse:
    """The money of a build, for several threads. cap: the most there is, None without an end. spent: what replies cost, those of
    earlier runs among them; reserved: the most that requests under way may cost."""

    cap: float | None
    currency: str = "USD"
    spent: float = 0.0
    reserved: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def hold(self, most: float) -> bool:
        """Set money aside for a request; False where the cap does not allow it."""
        with self.lock:
            if self.cap is not None and self.spent + self.reserved + most > self.cap:
                return False
            self.reserved += most
            return True

    def pay(self, reserve: float, cost: float) -> None:
        """Pay for a request out of what was set aside for it."""
        with self.lock:
            self.reserved -= reserve
            self.spent += cost


@dataclass(frozen=True)
class PaidUpstream:
    """A served model whose replies are paid out of a purse.

    The most that a request may cost is a token a byte read and max_tokens written; a reply whose server states no tokens is taken
    to have a token a byte.
    """

    upstream: ServedUpstream
    price: Price
    purse: Purse

    def stream(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Reply | UserError]]:
        """As `Responder` says. ServerGone where the cap is reached: what was under way has come."""
        yield from self.upstream.server.each(self._ask, requests)

    def _ask(self, client: Client, request: ChatRequest) -> Reply | UserError:
        read, written = _most_read(request), self.upstream.max_new_tokens
        most = money_of(Usage(prompt_tokens=read, completion_tokens=written), self.price)
        if not self.purse.hold(most):
            left = f"{self.purse.spent:.2f} spent; one more reply could go beyond it"
            return ServerGone(
                f"the cap of {self.purse.cap:g} {self.purse.currency} is reached ({left}). Raise 'cap' and run it again."
            )
        cost = 0.0
        try:
            reply = self.upstream.ask(client, request)
            if isinstance(reply, Reply):
                if reply.usage.unknown:
                    bound = Usage(prompt_tokens=read, completion_tokens=len(reply.text.encode()))
                    reply = replace(reply, usage=reply.usage + bound)
                cost = money_of(reply.usage, self.price)
            return reply
        finally:
            self.purse.pay(most, cost)


@dataclass(frozen=True)
class Estimate:
    """What is still to be asked: requests, tokens that are read and written, about, and at most; money likewise. At most: every
    reply is as long as it may be and asked for as often as it may be, and a token is a byte."""

    requests: int = 0
    read: int = 0
    written: int = 0
    most_read: int = 0
    most_written: int = 0
    price: Price = Price()

    @property
    def money(self) -> float:
        """About."""
        return money_of(Usage(prompt_tokens=self.read, completion_tokens=self.written), self.price)

    @property
    def most_money(self) -> float:
        """At most."""
        return money_of(Usage(prompt_tokens=self.most_read, completion_tokens=self.most_written), self.price)


@dataclass(frozen=True)
class Question:
    """A conversation to come: what decides its replies beside the model, its first request and those that may follow it, the tokens
    of the reply, about."""

    key: tuple[str, ...]
    request: ChatRequest
    more: tuple[ChatRequest, ...]
    expected: int
    begin: Callable[[int], Conversation]


def _most_read(request: ChatRequest) -> int:
    """The most tokens that a request can have: one a byte, and the frame."""
    return len(request.prompt.encode()) + FRAME


def row_of(model: ModelConfig, identity: str, key: Sequence[str]) -> int:
    """The number under which the replies of a model to this are kept. identity: of a model here, its fingerprint."""
    return int(fingerprint_of({**model.deciding(), "folder": identity}, *key)[:15], 16)


def request_of(model: ModelConfig, prompt: str, seed: int, extra: Mapping[str, Any] | None = None) -> ChatRequest:
    """A prompt as a request, sampled as the model's settings say."""
    more = {} if model.repetition_penalty is None else {"repetition_penalty": model.repetition_penalty}
    return ChatRequest(prompt, model.temperature, seed, 1, model.top_k, model.top_p, {**more, **(extra or {})})


def estimate(model: ModelConfig, identity: str, questions: Sequence[Question], journal: ReplyJournal) -> Estimate:
    """What the questions without a reply take."""
    new = [each for each in questions if (f"{UPSTREAM} 0", row_of(model, identity, each.key)) not in journal.done]
    return Estimate(
        len(new),
        sum(len(each.request.prompt) // LETTERS_A_TOKEN + FRAME for each in new),
        sum(min(each.expected, model.max_tokens) for each in new),
        sum(_most_read(request) for each in new for request in (each.request, *each.more)),
        sum(model.max_tokens * (1 + len(each.more)) for each in new),
        model.price,
    )


def ask(
    model: ModelConfig,
    identity: str,
    questions: Sequence[Question],
    journal: ReplyJournal,
    purse: Purse,
    progress: Progress,
) -> list[Conversation]:
    """Carry the conversations on to their ends. ServerGone where the server cannot be used, or the cap is reached: what came is
    kept."""
    talks = [each.begin(row_of(model, identity, each.key)) for each in questions]
    store = RepliesOfModel(journal, model, journal.done)
    converse(talks, {UPSTREAM: partial(open_model, model, purse)}, store, partial(progress, unit=" replies"))
    return talks


def check_first(model: ModelConfig, talks: Sequence[Conversation]) -> None:
    """UserError where not one of a model's first replies can be used: the others would be paid for in vain."""
    faults = [fault_of(talk.outcome) for talk in talks]
    if len(faults) == FIRST_REPLIES and all(faults):
        raise UserError(
            f"'{model.name}': none of its first {FIRST_REPLIES} replies can be used (the first: {faults[0]}); no more were "
            "asked for. A reply that was cut off needs a larger max_tokens, an unreadable one another model."
        )


def fault_of(outcome: Any) -> str:
    """What is wrong with a reply; '' where nothing is."""
    return str(outcome) if isinstance(outcome, UserError) else outcome.failure or ""


def open_model(model: ModelConfig, purse: Purse) -> Responder:
    """A model behind a server, or here. UserError where it cannot be opened."""
    if model.url:
        server = Server(model.url, model.model or "", model.key, model.concurrency, model.timeout)
        return PaidUpstream(ServedUpstream(server, model.max_tokens, model.dialect), model.price, purse)
    from aligner.baselines.local import LocalModel, LocalUpstream  # torch, which a server does not need
    from aligner.demo import locate

    return LocalUpstream(LocalModel.load(locate(model.folder or "")), model.max_tokens, model.batch_size)


def identity_of(model: ModelConfig) -> str:
    """What a model here is, whatever its folder is called; empty of a served one. UserError where it is not there."""
    if not model.folder:
        return ""
    from aligner.demo import locate
    from aligner.models import check_place, fingerprint

    place = locate(model.folder)
    check_place(place)
    return fingerprint(place, False)


def spent_on(talks: Sequence[Conversation]) -> Usage:
    """What all conversations cost, replies of earlier runs included."""
    total = Usage()
    for talk in talks:
        total += talk.cost.get(UPSTREAM, Usage())
    return total
