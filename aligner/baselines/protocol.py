"""What a method says and hears: requests, replies with their cost, and the protocol of whoever replies.

A method is a generator. It yields lists of requests, is sent the list of their replies, and returns an `Outcome`. So it is a pure
function of its question and of the replies: it can be run by one question or by thousands at once, and again from replies that
were kept.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from aligner.records import UserError

UPSTREAM, REWARD, ALIGNER = "upstream", "reward", "aligner"  # who is paid; asked in this order, each opened once


@dataclass(frozen=True)
class Usage:
    """What replies cost. calls: requests. prompt_tokens: read. completion_tokens: written, of beam search by all beams.
    passes: forward passes of a model; of a server, one a written token. seconds: from request to reply; of a batch, an equal
    share each. unknown: calls whose server did not say its tokens."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    passes: int = 0
    seconds: float = 0.0
    unknown: int = 0

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


Cost = Mapping[str, Usage]  # by who is paid


def added(*costs: Cost) -> dict[str, Usage]:
    """The sum of several costs."""
    total: dict[str, Usage] = {}
    for cost in costs:
        for payee, usage in cost.items():
            total[payee] = total.get(payee, Usage()) + usage
    return total


class ChatRequest(NamedTuple):
    """One user turn for the upstream. temperature 0: greedily, or with `beams` by beam search. seed: of what is drawn, of the top_k
    most likely tokens (0: of all) and those that make up top_p. extra: fields of the request that a server alone is sent."""

    prompt: str
    temperature: float = 0.0
    seed: int = 0
    beams: int = 1
    top_k: int = 0
    top_p: float = 1.0
    extra: Mapping[str, Any] = MappingProxyType({})


class RewardRequest(NamedTuple):
    """An answer to be rewarded. against: the answer that a judge of pairs compares it with."""

    question: str
    answer: str
    against: str


class AlignerRequest(NamedTuple):
    """An answer to be corrected."""

    question: str
    answer: str


Request = ChatRequest | RewardRequest | AlignerRequest


def payee_of(request: Request) -> str:
    """Who replies to a request."""
    if isinstance(request, ChatRequest):
        return UPSTREAM
    return REWARD if isinstance(request, RewardRequest) else ALIGNER


@dataclass(frozen=True)
class Reply:
    """A text, whether it ended by itself, and its cost. reward: in the place of a text."""

    text: str = ""
    finished: bool = True
    usage: Usage = Usage(calls=1)
    reward: float | None = None


class Responder(Protocol):
    """A model here, or behind a server."""

    def stream(self, requests: Sequence[Any]) -> Iterator[tuple[int, Reply | UserError]]:
        """Yield each request's place and reply as it arrives, in any order; an error where there is none.

        Raises ServerGone where a server cannot be used at all.
        """


@dataclass(frozen=True)
class Candidate:
    """A drawn answer of best-of-N, its reward, and what both cost. reward None: an empty answer has none."""

    text: str
    finished: bool
    reward: float | None
    cost: Cost


@dataclass(frozen=True)
class Question:
    """A question, with what an earlier run left of it: its answer and the cost of that, drawn candidates."""

    text: str
    answer: str | None = None
    cost: Cost = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a method made of a question. text: None where the upstream gave none. finished: the text ended by itself.
    failure: what went wrong in the method; its last good text stands. carried: cost of what an earlier run left.
    shown: what else belongs into the row."""

    text: str | None
    finished: bool = True
    failure: str | None = None
    carried: Cost = field(default_factory=dict)
    shown: Mapping[str, Any] = field(default_factory=dict)


Steps = Generator[list[Request], list[Reply], Outcome]
