"""The shapes of OpenAI's chat protocol: requests, errors, chunks of a stream; and the field that this program adds.

Every choice that an answer was corrected in (or could have been) carries one more field, `aligner`:

    action      corrected, unchanged (the Aligner wrote the same), left_alone, shadow, failed_open, no_text
    reason      why an answer was left alone: the gate, structured output, a tool call, fenced code, another script
    original    the upstream's answer
    edits       identical, copied, similarity, length_ratio (`aligner correct` writes the same)
    model, prompt, mode      of the Aligner: its name, its prompt's name, always, shadow or gate
    steered     what --steer adds to its states, where it does: the folder's name, alpha, layer
    confidence, threshold    of the gate
    tokens, seconds          that the correction has, and that it waited and took
    error       why there is none, with failed_open
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from aligner.chat_api.replies import error_in
from aligner.chat_api.streams import reply_in
from aligner.keys import without_keys
from aligner.parsing import json_value
from aligner.terminal import printable

KINDS = {  # any other: an invalid request below 500, the server's own error above
    401: "authentication_error",
    429: "rate_limit_error",
    502: "upstream_error",
    503: "aligner_error",
    504: "upstream_error",
}
log = logging.getLogger("aligner")
SERVER_FAILED = "The server failed; its log says how."
LAST = b"data: [DONE]\n\n"


class Refused(Exception):
    """A request that ends with an error: its status, message and headers."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": without_keys(self.message), "type": kind, "param": None, "code": self.code}}

    def response(self) -> JSONResponse:
        """The error as an answer."""
        return JSONResponse(self.body(), self.status, headers=self.headers)


def _loads(body: bytes) -> Any:
    """JSON whose strings are valid Unicode and whose numbers are numbers. ValueError otherwise."""
    value = json_value(body, strict=True)
    return _sendable(value) if b"\\u" in body else value


def _sendable(value: Any) -> Any:
    """A value that another reader of JSON takes. ValueError otherwise."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def parse_object(body: bytes) -> dict[str, Any]:
    """A body that is an object. Refused (400) where it is none."""
    try:
        value = _loads(body)
    except ValueError as error:
        half = isinstance(error, UnicodeEncodeError)
        raise Refused(400, f"The body {'holds half a surrogate pair' if half else 'is not JSON'}.") from None
    if not isinstance(value, dict):
        raise Refused(400, "The body is no JSON object.")
    return value


def parse_request(body: bytes) -> dict[str, Any]:
    """A chat request; only the fields that this program uses are checked. Raises Refused (400)."""
    chat = parse_object(body)
    messages = chat.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "'messages' must be a list of messages.")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refused(400, f"'messages[{place}]' must be an object with a role.")
    if not isinstance(chat.get("stream", False), bool | None):
        raise Refused(400, "'stream' must be true or false.")
    return chat


def completion(content: bytes) -> dict[str, Any]:
    """An upstream's chat completion, whole or as the events of a stream. Refused: with the upstream's words and the status that
    they stand for where it is an error, 502 where it is neither."""
    try:
        value = object_in(content)
        if error := error_in(value):
            raise Refused(error.status, error.message)
        choices = value["choices"]
        whole = isinstance(choices, list) and all(map(_is_choice, choices))
    except (ValueError, LookupError):
        whole = False
    if not whole:
        raise Refused(502, "The upstream answers with no chat completion.")
    return value


def object_in(content: bytes) -> dict[str, Any]:
    """The object of an upstream's answer, whole or of the events of a stream, that can be sent on: of valid Unicode, and numbers
    that are numbers. ValueError where it is none."""
    value: dict[str, Any] = _sendable(reply_in(content))
    return value


def _is_choice(choice: Any) -> bool:
    """Whether a choice is what this program will take apart: its message, where it has one, is an object, and so are the tool calls
    in it."""
    if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict | None):
        return False
    calls = (choice.get("message") or {}).get("tool_calls")
    return calls is None or (isinstance(calls, list) and all(isinstance(call, dict) for call in calls))


def json_answer(status: int, content: bytes, content_type: str) -> bytes:
    """An upstream's answer where it is JSON; an error that is not becomes one. Refused (502) where neither is the case.

    A page of the upstream's must not be served from here: its scripts would be this server's.
    """
    try:
        _loads(content)
        return content
    except ValueError:
        if status < 400:
            raise Refused(502, f"The upstream answers with status {status} and no JSON.") from None
        text = "" if "html" in content_type.lower() else content[:500].decode("utf-8", "replace")
        words = f": {printable(text.strip())}" if text.strip() else "."
        return json.dumps(
            Refused(status, f"The upstream answers with status {status} and no JSON{words}").body()
        ).encode()


def error_body(status: int, content: bytes) -> dict[str, Any]:
    """An upstream's error as an event of a stream."""
    try:
        value = object_in(content)
        error = error_in(value)
    except ValueError:
        value, error = {}, None
    if value.get("error"):
        return value
    return Refused(status, error.message if error else f"The upstream answers with status {status}.").body()


def event(value: Mapping[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(value, ensure_ascii=True).encode() + b"\n\n"


def chunk(whole: Mapping[str, Any], index: int, delta: Mapping[str, Any], **more: Any) -> bytes:
    """A chunk of a choice; `whole` is the completion that it is a part of. The last chunk of a choice carries all its fields."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
    extras = {name: v for name, v in whole.items() if name not in ("choices", "usage", "object")} if more else {}
    return event({**extras, **_head(whole), "choices": [choice]})


def usage_chunk(whole: Mapping[str, Any]) -> bytes:
    """The chunk with the upstream's usage, which `stream_options` asks for."""
    return event({**_head(whole), "choices": [], "usage": whole.get("usage")})


def _head(whole: Mapping[str, Any]) -> dict[str, Any]:
    known = {
        name: whole[name] for name in ("id", "created", "model", "system_fingerprint", "service_tier") if name in whole
    }
    return {**known, "object": "chat.completion.chunk"}


def error_event(error: Exception) -> bytes:
    """The end of a stream whose status has been sent: an error in it is what is left. One that was not foreseen is logged."""
    if isinstance(error, Refused):
        return event(error.body())
    log.error("a stream failed", exc_info=error)
    return event(Refused(500, SERVER_FAILED).body())
