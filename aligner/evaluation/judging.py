"""Pairs -> outcomes: every pair in both orders, in each dimension, with what was kept before not asked again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aligner.evaluation.dimensions import Dimension, decide
from aligner.evaluation.judges.judge import Asked, Judge, Said
from aligner.evaluation.pairs import Pair
from aligner.evaluation.replies import Replies
from aligner.records import UserError

Progress = Callable[..., Any]
SAME = "identical"  # in the place of replies where nothing was asked


@dataclass(frozen=True)
class Judged:
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
        """Whether the answer was changed, so that there was something to ask."""
        return self.pair.before != self.pair.after


def both_orders(pair: Pair, dimension: Dimension) -> tuple[Asked, Asked]:
    """The answer first, and the correction first."""
    question, before, after = pair.question, pair.before, pair.after
    return Asked(dimension, question, before, after), Asked(dimension, question, after, before)


def to_ask(pairs: Sequence[Pair], dimensions: Sequence[Dimension], judge: Judge, replies: Replies) -> list[Asked]:
    """What must be asked: both orders of each pair that changed, once each, but for what is known."""
    wanted = {
        replies.key(judge, asked): asked
        for pair in pairs
        for dimension in dimensions
        if pair.before != pair.after
        for asked in both_orders(pair, dimension)
        if replies.get(judge, asked) is None
    }
    return list(wanted.values())


def judge_pairs(
    pairs: Sequence[Pair], dimensions: Sequence[Dimension], judge: Judge, replies: Replies, progress: Progress
) -> list[Judged]:
    """Ask for what is missing and decide. An answer that was left as it was is a tie, unasked."""
    asked = to_ask(pairs, dimensions, judge, replies)
    errors: dict[str, UserError] = {}
    if asked:
        for place, said in progress(judge.ask(asked), total=len(asked), desc="judging", unit=" replies"):
            if isinstance(said, Said):
                replies.add(judge, asked[place], said)
            else:
                errors[replies.key(judge, asked[place])] = said
    return [_judged(pair, dimension, judge, replies, errors) for dimension in dimensions for pair in pairs]


def _judged(pair: Pair, dimension: Dimension, judge: Judge, replies: Replies, errors: dict[str, UserError]) -> Judged:
    if pair.before == pair.after:
        return Judged(pair, dimension.name, 0, (SAME, SAME), (0, 0))
    texts, read = [], []
    for asked in both_orders(pair, dimension):
        said = replies.get(judge, asked)
        if said is None:
            why = str(errors.get(replies.key(judge, asked), "no reply"))
            return Judged(pair, dimension.name, None, ("", ""), (None, None), why)
        texts.append(said.text)
        read.append(judge.read(asked, said.text))
    return Judged(pair, dimension.name, decide(read[0], read[1]), (texts[0], texts[1]), (read[0], read[1]))
