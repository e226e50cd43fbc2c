"""The keys that this process has, and every text that leaves it without them.

A server that fails may repeat the request that it got, with the key in it, as an error, a header or a page. So whatever came
from elsewhere passes here before it is sent, written or printed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from urllib.parse import unquote

SHORTEST = 8  # characters; a shorter key is a word of ordinary text, which must stay readable
BLOT = "[key]"
_SECRET = re.compile(r"key|token|secret|passw|credential|auth|(?<![a-z])sig(?:nature)?(?![a-z])", re.IGNORECASE)
_KNOWN: dict[str, re.Pattern[str]] = {}
_ESCAPE = re.compile(r"\\u00[2-7]|\\/|%[2-7]|&#")  # without one of these a key is written as it is


def read_key(variable: str) -> str:
    """The key in an environment variable, remembered; empty where it is not set."""
    return remember(os.environ.get(variable, "").strip())


def remember(key: str) -> str:
    """Blot this key out from now on."""
    if len(key) >= SHORTEST:
        _KNOWN.setdefault(key, re.compile("".join(map(_spellings, key))))
    return key


def remember_named(values: Iterable[tuple[str, str]]) -> None:
    """Blot out the values, of a query or of headers, whose names say that they are keys; of `Bearer KEY` the key."""
    for name, value in values:
        if _SECRET.search(name) and value.strip():
            key = value.split()[-1]
            remember(key)
            remember(unquote(key))


def _spellings(character: str) -> str:
    """A pattern for a character as it is, and as JSON, an address or a page may write it."""
    number, itself = ord(character), re.escape(character)
    return rf"(?:\\?{itself}|(?i:\\u{number:04x}|%{number:02x}|&#0*{number};|&#x0*{number:x};))"


def without_keys(text: str) -> str:
    """A text without the known keys."""
    escaped = bool(_KNOWN) and _ESCAPE.search(text)
    for key, pattern in _KNOWN.items():
        text = pattern.sub(BLOT, text) if escaped else text.replace(key, BLOT)
    return text


def bytes_without_keys(content: bytes) -> bytes:
    """The same for bytes of whatever encoding: a key is ASCII."""
    return without_keys(content.decode("latin-1")).encode("latin-1") if _KNOWN else content
