"""The text of tokens as they come: only the last few are decoded each time, however long the text is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

CONTEXT = (
    16  # tokens that are decoded again with the next ones: a tokenizer's text of a token depends on those before it
)
SLACK = 48  # tokens by which the window grows before its beginning moves up
UNKNOWN = "\ufffd"  # a character of several tokens that is not complete yet, or never will be
LONGEST_CHARACTER = 4  # bytes, and so tokens, of UTF-8


class TextStream:
    """The text of a growing list of tokens. `text`: what has been given out.

    `decode(tokens)` is the tokenizer's; the window that it gets begins at token `_start`, and of its text `_shown` characters
    were given out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode, self._start, self._shown, self._parts = decode, 0, 0, list[str]()

    @property
    def text(self) -> str:
        """All of the text so far."""
        return "".join(self._parts)

    def feed(self, tokens: Sequence[int]) -> str:
        """What the tokens, all of them so far, add to the text. A character that may not be complete waits."""
        window = self._decode(tokens[self._start :])
        open_end = len(window) - len(window.rstrip(UNKNOWN))
        final = len(window) - min(open_end, LONGEST_CHARACTER)
        piece = window[self._shown : final] if final > self._shown else ""
        self._shown = max(self._shown, final)
        if piece:
            self._parts.append(piece)
        if len(tokens) - self._start > CONTEXT + SLACK:
            waiting = len(window) - self._shown
            shorter = self._decode(tokens[-CONTEXT:])
            if len(shorter) > waiting:
                self._start, self._shown = len(tokens) - CONTEXT, len(shorter) - waiting
        return piece
