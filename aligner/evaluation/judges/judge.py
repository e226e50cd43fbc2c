"""A judge's request, its reply, and the protocol of judges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from aligner.evaluation.judges.dimensions import Dimension
from aligner.records import UserError

JUDGES = ("none", "served", "local", "reward", "cost", "reward-cost", "human")  # the values of --judge


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """Two responses to a question, in this order, to be judged in one dimension."""

    dimension: Dimension
    question: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """A judge's reply, word for word, and the tokens that it took, where that is known."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0


class Judge(Protocol):
    """A new judge is one file with these members, a name in JUDGES, and a line in `aligner/evaluation/command.py`."""

    @property
    def identity(self) -> str:
        """Everything about the judge that decides a reply: kept replies are used again where it is the same."""

    def prompt(self, request: JudgeRequest) -> str:
        """The prompt of a request; with the identity it is the key under which a reply is kept."""

    def ask(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, JudgeReply | UserError]]:
        """Yield each request's place and reply as it arrives, in any order; an error where there is none."""

    def read(self, request: JudgeRequest, reply: str) -> int | None:
        """1 where the first response is the better one, -1 the second, 0 neither; None where that cannot be read."""
