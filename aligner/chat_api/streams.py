"""Server-sent events, and the chunks of a completion put together again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from aligner.chat_api.replies import ApiError, error_in, is_whole

LONGEST = 1 << 20  # bytes of a line that is parsed
JOINED = (
    "content",
    "reasoning",
    "reasoning_content",
    "thinking",
    "refusal",
    "text",
    "arguments",
)  # texts that come in pieces


class EventReader:
    """Bytes -> the data of events: any line end, comments and other fields passed over, the last event with or without its end."""

    def __init__(self) -> None:
        self._begun, self._data = b"", list[str]()

    def feed(self, part: bytes) -> Iterator[str]:
        """The data of the events that these bytes complete."""
        *whole, begun = (self._begun + part).split(b"\n")
        self._begun = begun if len(begun) < LONGEST else b""
        for line in whole:
            yield from self._line(line.rstrip(b"\r"))

    def end(self) -> Iterator[str]:
        """The data of an event that the stream ended in."""
        yield from self._line(self._begun.rstrip(b"\r"))
        self._begun = b""
        yield from self._line(b"")

    def _line(self, line: bytes) -> Iterator[str]:
        line = line.removeprefix(b"\xef\xbb\xbf")
        if line.startswith(b"data:"):
            data = line[5:].decode("utf-8", errors="replace").strip()
            if _is_event(data):  # servers that forget the blank line between events
                yield data
            else:
                self._data.append(data)
        elif not line and self._data:
            yield "\n".join(self._data)
            self._data = []


def _is_event(data: str) -> bool:
    if data == "[DONE]":
        return True
    try:
        return isinstance(json.loads(data), dict | list)
    except (ValueError, RecursionError):
        return False


class CollectedStream:
    """A completion, put together from the events of its stream: texts are joined by choice, other fields are the last there was.

    `error`: that of an error event. `ended`: every choice gave a reason for its end.
    """

    def __init__(self) -> None:
        self.error: ApiError | None = None
        self.events = 0  # that were chunks
        self._reader, self._fields, self._choices = EventReader(), dict[str, Any](), dict[int, dict[str, Any]]()

    def feed(self, part: bytes) -> None:
        """Add some bytes."""
        for data in self._reader.feed(part):
            self._data(data)

    def finish(self) -> None:
        """The stream is at its end."""
        for data in self._reader.end():
            self._data(data)

    def _data(self, data: str) -> None:
        try:
            value = json.loads(data) if data != "[DONE]" else None
        except (ValueError, RecursionError):
            return
        if isinstance(value, Mapping):
            self.add(value)

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Add a chunk; one that is none is passed over."""
        if error := error_in(chunk):
            self.error = self.error or error
            return
        choices = chunk.get("choices")
        self.events += isinstance(choices, list)
        self._fields |= {name: v for name, v in chunk.items() if name != "choices" and v is not None}
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, Mapping):
                self._choice(choice)

    def _choice(self, choice: Mapping[str, Any]) -> None:
        index = choice.get("index") or 0
        mine = self._choices.setdefault(index, {"index": index, "message": {}, "finish_reason": None})
        delta = choice.get("delta") or choice.get("message")
        if isinstance(delta, Mapping):
            _merge(mine["message"], delta)
        for name, value in choice.items():
            if name == "text":
                mine["text"] = mine.get("text", "") + (value or "")
            elif name == "logprobs" and isinstance(value, Mapping):
                held = mine.setdefault("logprobs", {})
                for kind, tokens in value.items():
                    held[kind] = [*(held.get(kind) or []), *tokens] if isinstance(tokens, list) else tokens
            elif name not in ("index", "delta", "message") and value is not None:
                mine[name] = value

    @property
    def ended(self) -> bool:
        """Whether all choices came to an end, of whatever kind."""
        return bool(self._choices) and all(choice["finish_reason"] is not None for choice in self._choices.values())

    def whole_choices(self) -> list[dict[str, Any]]:
        """The choices that ended by themselves, in a stream without an error."""
        choices = [c for c in self._choices.values() if c["finish_reason"] is not None and is_whole(c["finish_reason"])]
        return choices if not self.error else []

    def completion(self) -> dict[str, Any]:
        """The whole completion, as it would have come without a stream."""
        for choice in self._choices.values():
            if not choice["message"].get("role"):
                choice["message"]["role"] = "assistant"
            choice["message"].setdefault("content", None)
        kind = "text_completion" if self._fields.get("object") == "text_completion" else "chat.completion"
        return {**self._fields, "object": kind, "choices": [self._choices[index] for index in sorted(self._choices)]}


def reply_in(content: bytes) -> dict[str, Any]:
    """The object that a body holds, or the completion (or error) that its events are. ValueError where it is neither."""
    if content.lstrip().startswith((b"data:", b"event:", b"id:", b":")):
        stream = CollectedStream()
        stream.feed(content)
        stream.finish()
        return {"error": stream.error._asdict()} if stream.error else stream.completion()
    value = json.loads(content)
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def _merge(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Add a delta to a message: pieces of text are joined, those of tool calls by their number."""
    for name, value in delta.items():
        if value is None:
            continue
        if name in JOINED and isinstance(value, str) and isinstance(message.get(name, ""), str):
            message[name] = message.get(name, "") + value
        elif name == "tool_calls" and isinstance(value, list):
            calls = message.setdefault(name, [])
            for place, call in enumerate(each for each in value if isinstance(each, Mapping)):
                number = call.get("index", len(calls) + place)
                held = next((each for each in calls if each.get("index") == number), None)
                if held is None:
                    calls.append(held := {"index": number})
                _merge(held, {key: v for key, v in call.items() if key != "index"})
        elif isinstance(value, list) and isinstance(message.get(name), list):
            message[name] = [*message[name], *value]
        elif isinstance(value, Mapping) and isinstance(message.get(name), dict):
            _merge(message[name], value)
        else:
            message[name] = dict(value) if isinstance(value, Mapping) else value
