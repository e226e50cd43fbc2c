"""How much of an answer was copied and how much changed, and a diff."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from rapidfuzz.distance import Indel, LCSseq
from rich.text import Text

from aligner.terminal import printable

MATCHES = 100_000  # pairs of equal words above which a diff is a longest common subsequence
TABLE = 4_000_000_000  # bits of a longest common subsequence's table: 500 MB
_WORDS = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")


class Segment(NamedTuple):
    """A run of text that was kept ('='), taken out ('-') or put in ('+')."""

    kind: str
    text: str


def words(text: str) -> list[str]:
    """Words and single signs, each with the white space before it; joined they are the text again."""
    return _WORDS.findall(text)


def diff(answer: str, corrected: str) -> list[Segment]:
    """The diff from the answer to the corrected one, word by word."""
    before, after = words(answer), words(corrected)
    segments: list[Segment] = []
    for kind, i, j, k, end in _opcodes(before, after):
        if kind == "equal":
            segments.append(Segment("=", "".join(before[i:j])))
            continue
        if i < j:
            segments.append(Segment("-", "".join(before[i:j])))
        if k < end:
            segments.append(Segment("+", "".join(after[k:end])))
    return segments


def _opcodes(before: list[str], after: list[str]) -> Iterable[tuple[str, int, int, int, int]]:
    """difflib's opcodes, which read well; those of `_kept` where repeated words would make difflib take minutes."""
    here, there = Counter(before), Counter(after)
    if sum(count * there[word] for word, count in here.items()) < MATCHES:
        return difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return _kept(before, after)


def _kept(before: list[str], after: list[str]) -> Iterable[tuple[str, int, int, int, int]]:
    """The opcodes of a longest common subsequence; of texts too long for its table, that all between equal ends is replaced."""
    if len(before) * len(after) > TABLE:
        head = _alike(before, after)
        tail = _alike(before[head:][::-1], after[head:][::-1])
        i, j = len(before) - tail, len(after) - tail
        opcodes = ("equal", 0, head, 0, head), ("replace", head, i, head, j), ("equal", i, len(before), j, len(after))
        return [each for each in opcodes if each[1] < each[2] or each[3] < each[4]]
    return [(o.tag, o.src_start, o.src_end, o.dest_start, o.dest_end) for o in LCSseq.opcodes(before, after)]


def _alike(before: list[str], after: list[str]) -> int:
    """How many words from the beginning on are the same."""
    different = (place for place, (one, other) in enumerate(zip(before, after, strict=False)) if one != other)
    return next(different, min(len(before), len(after)))


@dataclass(frozen=True, slots=True)
class Edits:
    """The changes of a correction to an answer.

    `identical`: nothing. `copied`: the share of the corrected text kept from the answer, 0 to 1. `similarity`: 1 less the
    characters taken out or put in over those of both texts, 0 to 1. `length_ratio`: characters after over before.
    """

    identical: bool
    copied: float
    similarity: float
    length_ratio: float


def edits(answer: str, corrected: str) -> Edits:
    """The figures of one correction."""
    ratio = len(corrected) / len(answer) if answer else float(len(corrected) > 0)
    return Edits(
        answer == corrected, copied_share(answer, corrected), Indel.normalized_similarity(answer, corrected), ratio
    )


def copied_share(answer: str, corrected: str) -> float:
    """The share of the corrected answer's characters in words that stand in the answer in the same order, 0 to 1."""
    after = words(corrected)
    kept = sum(
        len(word) for kind, _, _, k, end in _kept(words(answer), after) if kind == "equal" for word in after[k:end]
    )
    return kept / len(corrected) if corrected else 1.0 - bool(answer)


def show(segments: list[Segment], colour: bool) -> Text:
    """A diff for the eye: red struck through and green; without colour [-taken out-] and {+put in+}."""
    styles = {"=": "", "-": "red strike", "+": "green"}
    marks = {"=": "{}", "-": "[-{}-]", "+": "{{+{}+}}"}
    shown = Text()
    for kind, raw in segments:
        text = printable(raw, lines=True)
        shown.append(text if colour else marks[kind].format(text), style=styles[kind] if colour else "")
    return shown
