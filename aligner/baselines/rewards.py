"""What best-of-N chooses by: how likely an answer is under a model, or a judge."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aligner.baselines.local import LocalModel
from aligner.baselines.protocol import Reply, RewardRequest, Usage
from aligner.evaluation.judges.dimensions import Dimension, decide
from aligner.evaluation.judges.judge import Judge, JudgeReply, JudgeRequest
from aligner.evaluation.judges.scores import ScoreJudge
from aligner.inference.likelihood import log_likelihood
from aligner.models import positions_of
from aligner.records import UserError


@dataclass(frozen=True)
class LikelihoodReward:
    """The mean log-probability, in nats a token, of an answer and its end behind the question's user turn."""

    local: LocalModel

    def stream(self, requests: Sequence[RewardRequest]) -> Iterator[tuple[int, Reply | UserError]]:
        """As `Responder` says."""
        encoder, model = self.local.encoder, self.local.model
        prompts = [encoder.render(self.local.template, request.question, "") for request in requests]
        pairs = encoder.pairs(prompts, [request.answer for request in requests])
        positions = positions_of(model.config) or 10**9
        for place, (prompt, answer, _) in enumerate(pairs):
            tokens = len(prompt) + len(answer)
            if tokens > positions:
                yield place, UserError(f"an answer has {tokens:,} tokens with its question; {positions:,} can be read.")
                continue
            began = time.perf_counter()
            reward = log_likelihood(model, prompt, answer) / len(answer)
            usage = Usage(1, tokens, 0, 1, time.perf_counter() - began)
            finite = math.isfinite(reward)
            yield place, Reply(reward=reward, usage=usage) if finite else UserError(f"its likelihood is {reward}.")


@dataclass(frozen=True)
class ScoreReward:
    """The score of a reward model; of a cost model, minus its score."""

    judge: ScoreJudge

    def stream(self, requests: Sequence[RewardRequest]) -> Iterator[tuple[int, Reply | UserError]]:
        """As `Responder` says."""
        for place, request in enumerate(requests):
            began = time.perf_counter()
            try:
                score = self.judge.score_of(request.question, request.answer)
            except UserError as error:
                yield place, error
                continue
            tokens = self.judge.tokens_of(request.question, request.answer)
            usage = Usage(1, tokens, 0, 1, time.perf_counter() - began)
            yield place, Reply(reward=-score if self.judge.costs else score, usage=usage)


@dataclass(frozen=True)
class PairReward:
    """A judge of pairs: 1 where it finds an answer better than the first one drawn in both orders, -1 where worse, else 0."""

    judge: Judge
    dimension: Dimension

    def stream(self, requests: Sequence[RewardRequest]) -> Iterator[tuple[int, Reply | UserError]]:
        """As `Responder` says. A verdict that cannot be read is a tie: the first answer stands."""
        requested = [
            (place, JudgeRequest(self.dimension, each.question, first, second))
            for place, each in enumerate(requests)
            for first, second in ((each.against, each.answer), (each.answer, each.against))
            if each.answer != each.against
        ]
        for place, each in enumerate(requests):
            if each.answer == each.against:
                yield place, Reply(reward=0.0, usage=Usage())
        began, waiting = time.perf_counter(), dict[int, dict[int, JudgeReply | UserError]]()
        for at, reply in self.judge.ask([request for _, request in requested]):
            both = waiting.setdefault(requested[at][0], {})
            both[at % 2] = reply
            if len(both) == 2:
                seconds, began = time.perf_counter() - began, time.perf_counter()
                yield requested[at][0], self._rewarded([both[0], both[1]], requested[at - at % 2][1], seconds)

    def _rewarded(
        self, both: Sequence[JudgeReply | UserError], first: JudgeRequest, seconds: float
    ) -> Reply | UserError:
        """The reward from the replies with the first answer in first place, and in second."""
        for reply in both:
            if isinstance(reply, UserError):
                return reply
        replies = [reply for reply in both if isinstance(reply, JudgeReply)]
        outcome = decide(*(self.judge.read(first, reply.text) for reply in replies))
        read, written = (sum(getattr(reply, name) for reply in replies) for name in ("tokens_in", "tokens_out"))
        unknown = sum(not reply.tokens_in for reply in replies)
        return Reply(reward=float(outcome or 0), usage=Usage(2, read, written, written, seconds, unknown))
