"""A text in sentences, and the first whole one of a text that is still being written.

Code in fences and tables are one piece each, a line's end ends a sentence, and the mark of a list's item belongs to it; within a
line the package `sentencex` (Wikimedia's, for some 240 languages) tells where a sentence ends. The white space between two stands
before the second one, so that the pieces joined are the text again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version

from aligner.records import UserError
from aligner.texts import FENCE

PACKAGE = "sentencex"
REMEDY = 'pip install "qac-aligner[sentences]"'
LONGEST = 4000  # characters after which a text is cut at a space, where no sentence ends
_ITEM = re.compile(r"\s*(?:>\s*)*(?:[-*+•‣◦–]|\(?(?:\d{1,3}|[A-Za-z]|[ivx]{1,4})[.):])(?=\s)\s*")
_ROW = re.compile(r"\s*\|")
_CLOSING = re.compile(r"[*_~`\"'”’»)\]]+(?=\s|$)")
_WORD = re.compile(r"\w")


def require_splitter() -> str:
    """The splitter's name and version. UserError where it is not installed."""
    try:
        return f"{PACKAGE} {version(PACKAGE)}"
    except ImportError:
        raise UserError(f"--sentences needs the package {PACKAGE}: {REMEDY}.") from None


def split_sentences(text: str) -> list[str]:
    """The sentences, each with the white space before it; the last one also with that behind it."""
    pieces: list[str] = []
    for piece in _pieces(text):
        if pieces and not (_WORD.search(piece) and _WORD.search(pieces[-1])):
            pieces[-1] += piece  # what holds no word is no sentence: a closing quotation mark, a rule, an emoji
        else:
            pieces.append(piece)
    return _spaced(pieces)


def first_sentence(text: str, ended: bool) -> str | None:
    """The first sentence of a text that its writer has not `ended`; None as long as it may go on."""
    sentences = split_sentences(text)
    if len(sentences) > 1 or (ended and sentences):
        return sentences[0]
    if len(text) > LONGEST and not FENCE.search(text):
        return text[: text.rfind(" ", 0, LONGEST)] if " " in text[1:LONGEST] else text[:LONGEST]
    return None


def _pieces(text: str) -> Iterator[str]:
    """Blocks of code, tables, and the sentences of all other lines."""
    at = 0
    for block in FENCE.finditer(text):
        yield from _prose(text[at : block.start()])
        yield block[0]
        at = block.end()
    yield from _prose(text[at:])


def _prose(text: str) -> Iterator[str]:
    table = ""
    for line in text.splitlines(keepends=True):
        if _ROW.match(line):
            table += line
            continue
        if table:
            yield table
            table = ""
        item = _ITEM.match(line)
        mark = item[0] if item else ""
        first, *others = _sentences_of_line(line[len(mark) :]) or [""]
        yield mark + first
        yield from others
    if table:
        yield table


def _sentences_of_line(line: str) -> list[str]:
    import sentencex

    sentences = [each for each in sentencex.segment("en", line) if each]
    if "".join(sentences) != line:
        return [line]
    for at in range(1, len(sentences)):  # what closes emphasis belongs to what it closes
        if closing := _CLOSING.match(sentences[at]):
            sentences[at - 1 : at + 1] = sentences[at - 1] + closing[0], sentences[at][closing.end() :]
    return [each for each in sentences if each]


def _spaced(pieces: list[str]) -> list[str]:
    """White space moved from behind a piece to before the next one; a piece of nothing else goes to the next, too."""
    spaced, before = list[str](), ""
    for piece in pieces:
        bare = piece.rstrip()
        if bare:
            spaced.append(before + bare)
            before = piece[len(bare) :]
        else:
            before += piece
    if before and spaced:
        spaced[-1] += before
    return spaced
