"""A model behind an OpenAI-compatible server as the judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aligner.chat_api.replies import is_whole
from aligner.chat_api.thoughts import split_message
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
        request = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }
        reply = self.server.complete(client, "/chat/completions", request)
        choice, usage = reply["choices"][0], reply.get("usage") or {}
        text = split_message(choice["message"]).text  # a verdict that it weighed in its thoughts is none
        if not text.strip():
            return UserError(f"{self.server.url} gave no text for it; a model that reasons may need more --max_tokens.")
        counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        return JudgeReply(
            text + CUT_OFF * (not is_whole(choice.get("finish_reason"))),
            *(count if isinstance(count, int) else 0 for count in counts),
        )

    def read(self, request: JudgeRequest, reply: str) -> int | None:
        """The dimension's verdict."""
        return request.dimension.read(reply)
