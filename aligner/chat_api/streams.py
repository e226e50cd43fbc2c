"""Server-sent events, and the chunks of a completion put together again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aligner.chat_api.replies import ApiError, error_in, is_whole
from aligner.parsing import json_value

LONGEST = 1 << 20  # bytes of a line, and of an event, that is parsed
JOINED = (
    "content",
    "reasoning",
    "reasoning_content",
    "thinking",
    "refusal",
    "text",
    "arguments",
)  # texts that come in pieces


class Lines:
    """The whole lines of a stream of bytes. A line that is too long is given out in parts."""

    def __init__(self) -> None:
        self._begun = bytearray()

    def feed(self, part: bytes) -> Iterator[bytes]:
        """The lines that end in this part, each with its end."""
        at = 0
        while (end := part.find(b"\n", at) + 1) or len(self._begun) + len(part) - at > LONGEST:
            self._begun += part[at : end or len(part)]
            at = end or len(part)
            yield self.rest()
        self._begun += part[at:]

    def rest(self) -> bytes:
        """What is left of a line without an end."""
        line = bytes(self._begun)
        self._begun.clear()
        return line


class EventReader:
    """Bytes -> the data of events: any line end, comments and other fields passed over, the last event with or without its end.
    What is too long is passed over too."""

    def __init__(self) -> None:
        self._lines, self._data, self._size, self._within = Lines(), list[str](), 0, False

    def feed(self, part: bytes) -> Iterator[str]:
        """The data of the events that these bytes complete."""
        for line in self._lines.feed(part):
            ends = line.endswith(b"\n")
            if ends and not self._within and len(line) <= LONGEST:
                yield from self._line(line.rstrip(b"\r\n"))
            self._within = not ends  # of a line that is too long

    def end(self) -> Iterator[str]:
        """The data of an event that the stream ended in."""
        rest = self._lines.rest()
        yield from self._line(b"" if self._within else rest.rstrip(b"\r"))
        yield from self._line(b"")

    def _line(self, line: bytes) -> Iterator[str]:
        line = line.removeprefix(b"\xef\xbb\xbf")
        if line.startswith(b"data:"):
            data = line[5:].decode("utf-8", errors="replace").strip()
            if _is_event(data):  # servers that forget the blank line between events
                yield data
            elif self._size < LONGEST:
                self._data.append(data)
                self._size += len(data) + 1
        elif not line and self._data:
            yield "\n".join(self._data)
            self._data, self._size = [], 0


def _is_event(data: str) -> bool:
    if data == "[DONE]":
        return True
    try:
        return isinstance(json_value(data), dict | list)
    except ValueError:
        return False


def chunk_in(data: str) -> Mapping[str, Any] | None:
    """The object that an event's data is; None of any other."""
    try:
        value = json_value(data)
    except ValueError:  # the last, `[DONE]`, or none at all
        return None
    return value if isinstance(value, Mapping) else None


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
        if chunk := chunk_in(data):
            self.add(chunk)

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
        index = choice.get("index") if choice.get("index") is not None else 0
        if not isinstance(index, int):
            return
        mine = self._choices.setdefault(index, {"index": index, "message": {}, "finish_reason": None})
        delta = choice.get("delta") or choice.get("message")
        if isinstance(delta, Mapping):
            _merge(mine["message"], delta)
        for name, value in choice.items():
            if name == "text":
                _grow(mine, name, value if isinstance(value, str) else "")
            elif name == "logprobs" and isinstance(value, Mapping):
                held = mine.setdefault("logprobs", {})
                for kind, tokens in value.items():
                    before = held.get(kind)
                    held[kind] = [*before, *tokens] if isinstance(before, list) and isinstance(tokens, list) else tokens
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
        try:
            stream.feed(content)
            stream.finish()
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if not (stream.error or stream.events):
            raise ValueError("no event of it is a chunk")
        return {"error": stream.error._asdict()} if stream.error else stream.completion()
    value = json_value(content)
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def _grow(fields: dict[str, Any], name: str, piece: str) -> None:
    """Add a piece to a text, which is taken out for that: it grows in its place only where nothing else holds it."""
    text = fields.pop(name, "")
    text += piece
    fields[name] = text


def _merge(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Add a delta to a message: pieces of text are joined, those of tool calls by their number."""
    for name, value in delta.items():
        if value is None:
            continue
        if name in JOINED and isinstance(value, str) and isinstance(message.get(name, ""), str):
            _grow(message, name, value)
        elif name in JOINED and message.get(name) and isinstance(message[name], str):
            continue  # what is no piece of a text
        elif name == "tool_calls" and isinstance(value, list):
            calls = message[name] = message[name] if isinstance(message.get(name), list) else []
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
