"""A model behind an OpenAI-compatible server as the upstream."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aligner.baselines.protocol import ChatRequest, Reply, Usage
from aligner.chat_api.replies import is_whole
from aligner.chat_api.thoughts import split_message
from aligner.inference.servers import Client, Server
from aligner.records import Origin, UserError
from aligner.texts import text_fault


@dataclass(frozen=True)
class ServedUpstream:
    """Replies of a served model. max_new_tokens: of a reply. dialect: how the server is asked for beams, and to draw. Tokens are
    those that the server states (`usage`)."""

    server: Server
    max_new_tokens: int = 512
    dialect: str = "openai"

    def stream(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Reply | UserError]]:
        """As `Responder` says."""
        yield from self.server.each(self.ask, requests)

    def ask(self, client: Client, request: ChatRequest) -> Reply | UserError:
        """One request's reply. Raises what the client raises."""
        began = time.perf_counter()
        reply = self.server.complete(client, "/chat/completions", self._body(request))
        seconds = time.perf_counter() - began
        choices = reply["choices"]
        if request.beams > 1 and self.dialect == "vllm" and len(choices) != request.beams:
            return UserError(f"{self.server.url} searched {len(choices)} beams and not {request.beams}.")
        text, _ = split_message(choices[0]["message"])
        if text.strip() and (fault := text_fault(Origin(self.server.url, 0), "answer", text)):
            return UserError(f"{self.server.url} gave what is no text: {fault.problem}.")
        return Reply(text, is_whole(choices[0].get("finish_reason")), stated_usage(reply.get("usage"), seconds))

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": request.prompt}]}
        body |= {"max_tokens": self.max_new_tokens, "temperature": request.temperature}
        if request.temperature:
            body["seed"] = request.seed
        if request.temperature and request.top_p < 1:
            body["top_p"] = request.top_p
        if request.temperature and request.top_k and self.dialect != "transformers":
            body["top_k"] = request.top_k
        body |= request.extra
        if self.dialect == "transformers" and (request.temperature or request.beams > 1):
            drawn = (
                {"do_sample": bool(request.temperature), "top_k": request.top_k}
                if request.temperature
                else {"do_sample": False}
            )
            more = {"num_beams": request.beams, "max_new_tokens": self.max_new_tokens}
            body["generation_config"] = json.dumps({**drawn, **more})
        elif request.beams > 1:
            body |= {"use_beam_search": True, "n": request.beams}
        return body


def stated_usage(usage: Any, seconds: float) -> Usage:
    """One call's cost as the server states it."""
    fields = usage if isinstance(usage, Mapping) else {}
    read, written = fields.get("prompt_tokens"), fields.get("completion_tokens")
    if not (isinstance(read, int) and isinstance(written, int)):
        return Usage(1, seconds=seconds, unknown=1)
    return Usage(1, read, written, written, seconds)
