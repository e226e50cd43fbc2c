"""What a model refuses: learned from its first refusal, said once, and never sent to it again.

Models differ in what they take: `max_completion_tokens` for `max_tokens`, no `temperature`, no reply that is not streamed. Which,
only their refusals say, each server in its own words.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from typing import Any

log = logging.getLogger("aligner")
REFUSALS = (400, 404, 405, 415, 422, 501)  # statuses of a refusal that may concern a parameter
NEEDED = ("model", "messages", "prompt", "input")  # without these there is no request
RENAMED = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_REFUSAL = re.compile(
    r"un-?support|not (?:be )?(?:support|permit|allow|accept|available|implement|valid|recogni|compatible)|"
    r"n[o']t (?:currently )?(?:support|accept|allow|take)|unrecogni|unknown|unexpected|extra_forbidden|extra (?:inputs|fields)|"
    r"deprecat|no longer|fixed at|only (?:the )?default|cannot (?:both )?be|can't be|cannot find field|"
    r"invalid (?:parameter|argument|field)|"
    r"only .{0,30}(?:supported|allowed)|not have|removed|must be (?:1\b|omitted|unset|the default)|forbidden|additional propert",
    re.IGNORECASE,
)
_SIZE = re.compile(
    r"too (?:large|small|long|high|low|many)|exceed|at most|at least|maximum|less than|greater than|range",
    re.IGNORECASE,
)
_USE = re.compile(r"(?:use|with|try) [`'\"]?(\w+)[`'\"]?(?: parameter)? instead", re.IGNORECASE)
_STREAM = re.compile(
    r"non.?stream|\bstream\b[^.]{0,10} must be|only (?:support\w*|works? with|available (?:in|with))? ?(?:the )?stream|"
    r"stream\w*[^.]{0,30} (?:is )?(?:required|only)|"
    r"(?:set|enable|requires?|must (?:be|use)|needs?)[^.]{0,30}stream",
    re.IGNORECASE,
)
Change = dict[str, Any]  # parameter -> the name under which it is taken, or None where it is not; `stream` -> True


def refused_in(status: int, error: Any, request: Mapping[str, Any]) -> Change:
    """Which of a request's parameters an error refuses, and what is taken in their place; empty where it refuses none.

    `error`: the body, or its words. A value that is too large is no refusal of its parameter.
    """
    if status not in REFUSALS:
        return {}
    fields = error.get("error", error) if isinstance(error, Mapping) else {}
    fields = fields if isinstance(fields, Mapping) else {}
    words, code = str(error), str(fields.get("code") or "")
    if not request.get("stream") and _STREAM.search(words):
        return {"stream": True}
    if not (_REFUSAL.search(words) or code.startswith("unsupported")):
        return {}
    if _SIZE.search(words) and not code.startswith(("unsupported", "unknown")):
        return {}
    param = str(fields.get("param") or "").split(".")[0]
    candidates = [name for name in request if name not in NEEDED]
    names = [name for name in candidates if name == param] or [n for n in candidates if _mentions(words, n, request)]
    if {"temperature", "top_p"} <= set(names) and re.search(r"\bboth\b|together|only one|at the same time", words):
        names.remove("temperature")  # either is taken, not both
    use = _USE.search(words)
    return {name: _instead(name, use[1] if use else None, request) for name in names}


def _mentions(words: str, name: str, request: Mapping[str, Any]) -> bool:
    """Whether words name a parameter: as it is, or as `presencePenalty`. What is offered instead of it is not refused."""
    camel = re.sub(r"_(\w)", lambda match: match[1].upper(), name)
    plain = _USE.sub("", words)
    return bool(re.search(rf"(?<![\w]){name}(?![\w])|(?<![\w]){camel}(?![\w])", plain, re.IGNORECASE))


def _instead(name: str, offered: str | None, request: Mapping[str, Any]) -> str | None:
    renamed = RENAMED.get(name)
    if renamed is None or renamed in request:
        return None
    return offered if offered and offered.startswith("max_") else renamed


class ModelParameters:
    """What one model on one server takes. Several threads may ask and teach it."""

    def __init__(self, name: str) -> None:
        self.name, self._changes, self._lock = name, Change(), threading.Lock()

    def adapt(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A request as the model takes it."""
        with self._lock:
            changes = dict(self._changes)
        adapted = dict(request)
        for name, instead in changes.items():
            if name == "stream":
                adapted["stream"] = True
            elif name in adapted:
                value = adapted.pop(name)
                if instead and instead not in changes:  # a name that is refused as well leaves neither
                    adapted[instead] = value
        return adapted

    def learn(self, status: int, error: Any, sent: Mapping[str, Any]) -> bool:
        """Whether a refusal taught something, so that the request is worth sending again. It is said once."""
        change = refused_in(status, error, sent)
        with self._lock:
            new = {name: instead for name, instead in change.items() if name not in self._changes}
            self._changes.update(new)
        for name, instead in new.items():
            if name == "stream":
                log.warning("%s answers only as a stream: its replies are collected from streams", self.name)
            else:
                took = f"'{instead}' is sent instead" if instead else "it is left out, so the model's own value holds"
                log.warning("%s refuses the parameter '%s': %s", self.name, name, took)
        return bool(change) and self.adapt(sent) != dict(sent)
