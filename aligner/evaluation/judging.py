"""Pairs -> outcomes: every pair in both orders, in each dimension, with replies that are kept not requested again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aligner.evaluation.judges.dimensions import Dimension, decide
from aligner.evaluation.judges.judge import Judge, JudgeReply, JudgeRequest
from aligner.evaluation.pairs import Pair
from aligner.evaluation.replies import ReplyStore
from aligner.records import UserError

Progress = Callable[..., Any]
SAME = "identical"  # in the place of replies where the answer was not changed


@dataclass(frozen=True)
class Verdict:
    """A pair in a dimension. `outcome`: 1 the correction won, -1 it lost, 0 a tie, None where that is not known: a reply was
    unreadable, or missing (`error`). `replies`: with the answer first, with the correction first. `read`: what was read of them,
    1 where the first response was the better one."""

    pair: Pair
    dimension: str
    outcome: int | None
    replies: tuple[str, str]
    read: tuple[int | None, int | None]
    error: str = ""

    @property
    def changed(self) -> bool:
        """Whether the correction differs from the answer, so that there is something to judge."""
        return self.pair.before != self.pair.after


def both_orders(pair: Pair, dimension: Dimension) -> tuple[JudgeRequest, JudgeRequest]:
    """The answer first, and the correction first."""
    question, before, after = pair.question, pair.before, pair.after
    return JudgeRequest(dimension, question, before, after), JudgeRequest(dimension, question, after, before)


def open_requests(
    pairs: Sequence[Pair], dimensions: Sequence[Dimension], judge: Judge, store: ReplyStore
) -> list[JudgeRequest]:
    """The requests without a kept reply: both orders of each pair that changed, each once."""
    wanted = {
        store.key(judge, request): request
        for pair in pairs
        for dimension in dimensions
        if pair.before != pair.after
        for request in both_orders(pair, dimension)
        if store.get(judge, request) is None
    }
    return list(wanted.values())


def judge_pairs(
    pairs: Sequence[Pair], dimensions: Sequence[Dimension], judge: Judge, store: ReplyStore, progress: Progress
) -> list[Verdict]:
    """Send the requests without a reply, and decide. An unchanged answer is a tie without a request."""
    requests = open_requests(pairs, dimensions, judge, store)
    errors: dict[str, UserError] = {}
    if requests:
        for place, reply in progress(judge.ask(requests), total=len(requests), desc="judging", unit=" replies"):
            if isinstance(reply, JudgeReply):
                store.add(judge, requests[place], reply)
            else:
                errors[store.key(judge, requests[place])] = reply
    return [_verdict(pair, dimension, judge, store, errors) for dimension in dimensions for pair in pairs]


def _verdict(
    pair: Pair, dimension: Dimension, judge: Judge, store: ReplyStore, errors: dict[str, UserError]
) -> Verdict:
    if pair.before == pair.after:
        return Verdict(pair, dimension.name, 0, (SAME, SAME), (0, 0))
    texts, read = [], []
    for request in both_orders(pair, dimension):
        reply = store.get(judge, request)
        if reply is None:
            why = str(errors.get(store.key(judge, request), "no reply"))
            return Verdict(pair, dimension.name, None, ("", ""), (None, None), why)
        texts.append(reply.text)
        read.append(judge.read(request, reply.text))
    return Verdict(pair, dimension.name, decide(read[0], read[1]), (texts[0], texts[1]), (read[0], read[1]))
