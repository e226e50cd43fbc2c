"""What people read: the one way of lines to the screen. Control characters are shown and not obeyed, keys are blotted out."""

from __future__ import annotations

import functools
import logging
import re
import sys
from typing import IO, Any

from aligner.keys import without_keys

log = logging.getLogger("aligner")

# What a terminal obeys or hides: C0 and C1 (of them the tab is harmless), DEL, line separators, marks and overrides of
# direction, invisible tags; half a surrogate pair cannot be printed at all.
_OBEYED = re.compile(
    "[\0-\x08\n-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


_STAND_INS: dict[str, str] = {}  # files of this program's own, and what is shown in place of their paths


def show_as(path: object, name: str) -> None:
    """From here on, print the name wherever a line holds this path, which nobody chose."""
    _STAND_INS[str(path)] = name


def _named(text: str) -> str:
    for path, name in _STAND_INS.items():
        text = text.replace(path, name)
    return text


def printable(text: object, lines: bool = False) -> str:
    r"""A text as one line that no terminal obeys: an escape becomes `\x1b`, a new line `\n`. `lines`: new lines stay."""
    return _OBEYED.sub(lambda match: match[0] if lines and match[0] == "\n" else _escaped(match[0]), str(text))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def print_lines(*lines: object, to: IO[Any] | None = None) -> None:
    """Print each argument as one line, to standard output or the stream, at once. OSError where nobody listens any more."""
    stream = to or sys.stdout
    stream.write("".join(f"{printable(without_keys(_named(str(line))))}\n" for line in lines))
    stream.flush()


def print_errors(*lines: object) -> None:
    """Print lines to standard error."""
    print_lines(*lines, to=sys.stderr)


@functools.cache
def warn_once(line: str) -> None:
    """Log a warning, once in a process however often its cause is met."""
    log.warning(line)


def prepare_streams() -> None:
    """Let a character that the terminal's encoding lacks be printed as its number, where Python would fail on it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
