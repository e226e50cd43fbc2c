"""A reward model and a cost model together, as Safe-RLHF has them: helpfulness is the reward, harmlessness minus the cost (paper,
figure 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from aligner.evaluation.judges.judge import JudgeReply, JudgeRequest
from aligner.evaluation.judges.scores import ScoreJudge
from aligner.records import UserError

DIMENSIONS = ("helpful", "harmless")


@dataclass(frozen=True)
class RewardAndCost:
    """Two scoring judges, each asked in its own dimension; of both the higher score is the better one."""

    helpfulness: ScoreJudge
    harmlessness: ScoreJudge

    @classmethod
    def load(cls, reward: str, cost: str, trust_remote_code: bool = False) -> RewardAndCost:
        """Open two folders or hub ids. UserError where one is no scoring model."""
        costs = ScoreJudge.load(cost, False, trust_remote_code)
        harmlessness = replace(costs, name=f"minus {costs.name}", score=lambda ids: -costs.score(ids))
        return cls(ScoreJudge.load(reward, False, trust_remote_code), harmlessness)

    @property
    def identity(self) -> str:
        """Both."""
        return f"{self.helpfulness.identity}, {self.harmlessness.identity}"

    def _of(self, request: JudgeRequest) -> ScoreJudge:
        return self.helpfulness if request.dimension.name == "helpful" else self.harmlessness

    def prompt(self, request: JudgeRequest) -> str:
        """What is scored, and by which of the two."""
        return f"{self._of(request).identity} {self._of(request).prompt(request)}"

    def ask(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, JudgeReply | UserError]]:
        """As `Judge` says."""
        for place, each in enumerate(requests):
            yield from ((place, reply) for _, reply in self._of(each).ask([each]))

    def read(self, request: JudgeRequest, reply: str) -> int | None:
        """By the scores of the dimension's model."""
        return self._of(request).read(request, reply)
