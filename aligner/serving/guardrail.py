"""LiteLLM's generic guardrail API: a gateway sends what was asked and then what was answered, and gets the correction.

The call with the answer carries no question, so the two are paired by the gateway's id of the request. Questions are held in this
process alone, so many and so long; an answer whose question is not known has no correction, which is a failure as any other.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from aligner.serving.exchange import Exchange
from aligner.serving.protocol import Refused, parse_object

PATH = "/beta/litellm_basic_guardrail_api"
MOST = 4096  # questions that are held
SECONDS = 900.0  # that one is held: an upstream's answer may take long
CHARACTERS = 50_000_000  # of all that are held
UNKNOWN = "The question of this answer is not known: no call with input_type 'request' and its litellm_call_id came before it."
Messages = list[dict[str, Any]]


class AskedBefore:
    """The messages of requests by the gateway's id, until they are too many, too long or too old."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, tuple[float, int, Messages]] = OrderedDict()
        self._characters = 0

    def keep(self, call: str, messages: Messages) -> None:
        """Hold the messages of a request."""
        self._drop(call)
        size = sum(len(str(message.get("content"))) for message in messages)
        self._held[call] = (time.monotonic(), size, messages)
        self._characters += size
        while len(self._held) > MOST or self._characters > CHARACTERS:
            self._drop(next(iter(self._held)))

    def of(self, call: str) -> Messages | None:
        """The messages of a request; None where they are not held. A gateway may ask for them more than once."""
        while self._held and next(iter(self._held.values()))[0] < time.monotonic() - SECONDS:
            self._drop(next(iter(self._held)))
        held = self._held.get(call)
        return held[2] if held else None

    def _drop(self, call: str) -> None:
        held = self._held.pop(call, None)
        self._characters -= held[1] if held else 0


async def guard(exchange: Exchange, asked: AskedBefore, body: bytes) -> dict[str, Any]:
    """The reply to a call: NONE (nothing is to change), GUARDRAIL_INTERVENED with the corrected texts, or BLOCKED with the reason,
    where there is no correction and `--on_failure` is closed. Refused (400) where the call is none."""
    call = parse_object(body)
    texts, kind = call.get("texts") or [], call.get("input_type")
    if (
        not isinstance(texts, list)
        or not all(isinstance(text, str) for text in texts)
        or kind not in ("request", "response")
    ):
        raise Refused(400, "A guardrail's call has 'texts', a list, and 'input_type', request or response.")
    name, messages = str(call.get("litellm_call_id") or ""), _messages(call, texts if kind == "request" else ())
    if kind == "request":
        if messages and name:
            asked.keep(name, messages)
        return {"action": "NONE"}
    messages = messages or asked.of(name) or []
    if not messages and exchange.policy.on_failure == "closed":
        return {"action": "BLOCKED", "blocked_reason": UNKNOWN}
    corrected = []
    for text in texts if messages else ():
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        if refused := await exchange.whole({"messages": messages}, choice):
            return {"action": "BLOCKED", "blocked_reason": refused.message}
        corrected.append(choice["message"]["content"])  # type: ignore[index]
    return (
        {"action": "GUARDRAIL_INTERVENED", "texts": corrected}
        if corrected and corrected != texts
        else {"action": "NONE"}
    )


def _messages(call: Mapping[str, Any], texts: Sequence[str]) -> Messages:
    """The dialogue that a call carries: its structured messages, or its texts as the user's."""
    listed = call.get("structured_messages")
    if (
        isinstance(listed, list)
        and listed
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in listed)
    ):
        return listed
    return [{"role": "user", "content": text} for text in texts]
