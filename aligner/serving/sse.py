"""Server-sent events as they pass, of which a bounded part is held: the text that they carry, their lines without keys."""

from __future__ import annotations

from collections.abc import Iterator

from aligner.keys import bytes_without_keys
from aligner.parsing import json_value

LONGEST = 1 << 20  # bytes of a line; what is longer is no chunk of a chat


class Lines:
    """The whole lines of a stream of bytes. A line that is too long is given out in parts."""

    def __init__(self) -> None:
        self._begun = bytearray()

    def feed(self, part: bytes) -> Iterator[bytes]:
        """The lines that end in this part, each with its end."""
        while (end := part.find(b"\n") + 1) or len(self._begun) + len(part) > LONGEST:
            cut = end or len(part)
            self._begun += part[:cut]
            part = part[cut:]
            yield self.rest()
        self._begun += part

    def rest(self) -> bytes:
        """What is left of a line without an end."""
        line = bytes(self._begun)
        self._begun.clear()
        return line


class BlottedLines:
    """A stream of lines without the keys that this process has."""

    def __init__(self) -> None:
        self._lines = Lines()

    def feed(self, part: bytes) -> bytes:
        """The whole lines so far that were not given out."""
        return bytes_without_keys(b"".join(self._lines.feed(part)))

    def rest(self) -> bytes:
        """What comes at the end."""
        return bytes_without_keys(self._lines.rest())


class StreamedText:
    """The text of a stream of chunks, by choice: `longest` characters in all, of more nothing is kept."""

    def __init__(self, longest: int = 100_000) -> None:
        self._longest, self._size, self._lines = longest, 0, Lines()
        self._texts: dict[int, list[str]] = {}

    @property
    def is_too_long(self) -> bool:
        """Whether there was more than is kept."""
        return self._size > self._longest

    def feed(self, part: bytes) -> None:
        """Add some bytes of server-sent events; lines that are no chunk are ignored."""
        for line in self._lines.feed(part):
            self._add(line)

    def _add(self, line: bytes) -> None:
        try:
            pieces = [
                (choice.get("index", 0), choice["delta"].get("content") or "")
                for choice in json_value(line.removeprefix(b"data:"))["choices"]
            ]
        except (ValueError, TypeError, KeyError, AttributeError):
            return
        for index, text in pieces:
            if isinstance(index, int) and isinstance(text, str):
                self._size += len(text) + 1
                if self.is_too_long:
                    self._texts.clear()
                else:
                    self._texts.setdefault(index, []).append(text)

    def texts(self) -> list[str]:
        """The texts of all choices that are not empty."""
        return [text for pieces in self._texts.values() if (text := "".join(pieces)).strip()]
