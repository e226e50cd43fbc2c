"""A model behind an OpenAI-compatible server as the judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aligner.evaluation.judges.dimensions import CUT_OFF
from aligner.evaluation.judges.judge import JudgeReply, JudgeRequest
from aligner.inference.servers import Client, Server
from aligner.records import UserError


@dataclass(frozen=True)
class ServedJudge:
    """A judge that replies through chat completions, greedily by default. `max_tokens`: of a reply, reasons and verdict."""

    server: Server
    max_tokens: int = 1024
    temperature: float = 0.0

    @property
    def identity(self) -> str:
        """The model and its sampling; not its address."""
        return f"{self.server.model} {self.max_tokens} {self.temperature}"

    def prompt(self, request: JudgeRequest) -> str:
        """The dimension's."""
        return request.dimension.render(request.question, request.first, request.second)

    def ask(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, JudgeReply | UserError]]:
        """As `Judge` says. ServerGone where the server cannot be used at all."""
        yield from self.server.each(self._ask, [self.prompt(each) for each in requests])

    def _ask(self, client: Client, prompt: Any) -> JudgeReply | UserError:
        reply = client.chat.completions.create(
            model=self.server.model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=self.max_tokens,
            temperature=self.temperature,
        )
        choice, usage = reply.choices[0], reply.usage
        text = choice.message.content
        if not isinstance(text, str) or not text.strip():
            return UserError(f"{self.server.url} gave no text for it; a model that reasons may need more --max_tokens.")
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return JudgeReply(
            text + CUT_OFF * (choice.finish_reason == "length"),
            *(count if isinstance(count, int) else 0 for count in counts),
        )

    def read(self, request: JudgeRequest, reply: str) -> int | None:
        """The dimension's verdict."""
        return request.dimension.read(reply)
