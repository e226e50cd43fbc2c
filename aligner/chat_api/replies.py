"""What a reply is: an error, whatever its status says; an answer; and whether that answer is whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

WHOLE = {
    "stop",
    "end_turn",
    "stop_sequence",
    "eos",
    "eos_token",
    "complete",
    "completed",
    "finished",
    "done",
    "tool_calls",
    "tool_call",
    "tool_use",
    "function_call",
    "",
}
_STATUS = (  # words of an error -> the status that it should have had
    (r"context.?length|maximum context|too (?:long|many tokens)|prompt is too", 400),
    (r"rate.?limit|too many requests|quota|throttl|exhausted|requests per", 429),
    (r"unauthori|authenticat|api.?key|invalid token|credential", 401),
    (r"permission|forbidden|not allowed", 403),
    (r"not.?found|does not exist|no such model|unknown model", 404),
    (r"time.?d? ?out|timeout|deadline", 504),
    (r"overload|unavailable|capacity|busy|try again|no healthy|maintenance", 503),
    (r"invalid.?request|bad.?request|invalid.?(?:argument|parameter)|unsupported", 400),
)
_WORDS = ("message", "msg", "error_msg", "status_msg", "detail", "error", "title", "reason", "description")


class ApiError(NamedTuple):
    """An error of a server: the status that it has or should have had, and its words in one line."""

    status: int
    message: str


def is_whole(finish_reason: Any) -> bool:
    """Whether an answer ended by itself. Not whole: cut at a limit, by a filter, by an error, or for a reason nobody knows.

    None, which some servers give with every answer, says nothing against it; a stream needs a reason.
    """
    return finish_reason is None or str(finish_reason).lower() in WHOLE


def error_in(value: Any) -> ApiError | None:
    """The error that a body of status 200 holds, in the forms in which servers and gateways write it; None where it has none."""
    try:
        return _found(value)
    except RecursionError:
        return ApiError(502, "an error that is nested too deeply")


def _found(value: Any) -> ApiError | None:
    if isinstance(value, list) and value:  # one object in a list
        return _found(value[0])
    if not isinstance(value, Mapping):
        return None
    base = value.get("base_resp")
    if isinstance(base, Mapping) and base.get("status_code"):
        return _error(base, value)
    if value.get("error"):
        return _error(value["error"], value)
    choices = value.get("choices")
    if isinstance(choices, list):
        broken = [choice["error"] for choice in choices if isinstance(choice, Mapping) and choice.get("error")]
        return _error(broken[0], value) if broken else None
    if any(name in value for name in ("data", "output", "id")) and value.get("object") != "error":
        return None
    if isinstance(value.get("errors"), list) and value["errors"]:
        return _error(value["errors"][0], value)
    return _error(value, value) if any(value.get(name) for name in _WORDS) else None


def _error(inner: Any, outer: Mapping[str, Any]) -> ApiError:
    """An error of its object, or its words, and what stands around it."""
    fields = inner if isinstance(inner, Mapping) else {}
    message = inner if isinstance(inner, str) else next((_words(fields[n]) for n in _WORDS if fields.get(n)), "")
    codes = [source.get(n) for source in (fields, outer) for n in ("status", "status_code", "http_code", "code")]
    numbers = [int(code) for code in codes if isinstance(code, int | str) and re.fullmatch(r"[45]\d\d", str(code))]
    kinds = " ".join(str(fields.get(name, "")) for name in ("type", "code", "status"))
    words = f"{message} {kinds}"
    known = next((status for pattern, status in _STATUS if re.search(pattern, words, re.IGNORECASE)), 502)
    return ApiError(numbers[0] if numbers else known, " ".join(message.split())[:500] or "an error without words")


def _words(value: Any) -> str:
    """An error's words: text, or the first of a list of them (FastAPI's `detail`)."""
    if isinstance(value, list) and value:
        return _words(value[0])
    if isinstance(value, Mapping):
        loc = value.get("loc")
        place = ".".join(map(str, loc)) if isinstance(loc, list) else ""
        return f"{place}: {_words(value.get('msg') or value.get('message') or '')}".removeprefix(": ")
    return str(value)
