"""An upstream that streams answers and goes on with them, and an Aligner that corrects sentences: real servers with a rule."""

from __future__ import annotations

import json
import re
from typing import Any

from scripted import USUAL

# What the upstream says: of an answer that was corrected it knows another end.
FIRST = "You fool! The capital is Rome, e.g. of old. It is on the Tiber. Ask again."
BEHIND_PARIS = " It is on the Seine. Bye."
CHANGES = {"You fool!": "Hello.", "The capital is Rome, e.g. of old.": "The capital is Paris."}
CORRECTED = "Hello. The capital is Paris. It is on the Seine. Bye."
SSE = {"content-type": "text/event-stream"}


def continuation(said: str) -> str:
    """What the upstream writes behind what was said."""
    if not said:
        return FIRST
    if said.endswith("Hello."):
        return FIRST.removeprefix("You fool!")
    if said.endswith("Paris."):
        return BEHIND_PARIS
    return " Bye." if said.endswith("Seine.") else " And so on."


def streamed(text: str, key: str, reason: str = "stop") -> list[bytes]:
    """A reply in pieces of a few characters, as chat (`delta`) or completion (`text`)."""
    pieces = re.findall(r"(?s).{1,5}", text)
    choices = [
        {"index": 0, key: each if key == "text" else {"content": each}, "finish_reason": None} for each in pieces
    ]
    choices.append({"index": 0, key: "" if key == "text" else {}, "finish_reason": reason})
    events = [f"data: {json.dumps({**USUAL, 'choices': [choice]})}\n\n".encode() for choice in choices]
    return [*events, b"data: [DONE]\n\n"]


def upstream_rule(path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], list[bytes] | bytes]:
    """As a server with `continue_final_message`; its completions take a prompt that ends in 'A:' and what was said."""
    if path.endswith("/completions") and "prompt" in body:
        return 200, SSE, streamed(continuation(body["prompt"].partition("A:")[2]), "text")
    last = body["messages"][-1]
    assert (last["role"] == "assistant") == bool(body.get("continue_final_message"))
    return 200, SSE, streamed(continuation(last["content"] if last["role"] == "assistant" else ""), "delta")


def aligner_rule(changes: dict[str, str] = CHANGES) -> Any:
    """An Aligner that knows a few corrections and copies all else."""

    def rule(path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], list[bytes] | bytes]:
        prompt = body["prompt"]
        sentence = prompt.partition("##Next sentence: ")[2].partition("\n##Correction:")[0]
        corrected = changes.get(sentence, sentence)
        if corrected == "FAIL":
            return 400, {}, json.dumps({"error": {"message": "no"}}).encode()
        if body.get("stream"):
            return 200, SSE, streamed(corrected, "text")
        choice = {"index": 0, "text": corrected, "finish_reason": "stop"}
        return 200, {}, json.dumps({**USUAL, "choices": [choice]}).encode()

    return rule
