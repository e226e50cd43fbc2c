"""Questions that differ in a word: rensa proposes pairs by their MinHash, rapidfuzz confirms them word by word.

A name or a number in the place of another asks for another thing, and so does each filling of one template ("What does ... mean?"):
such questions are not near duplicates. Neither are short ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import regex
from rapidfuzz.distance import Levenshtein

from aligner.questions import question_key, tokens
from aligner.records import UserError

LETTERS = 3  # of a shingle
BANDS, ROWS = 42, 3  # two questions that share half of their shingles are proposed with 99.6 %
SHORTEST = 4  # words, below which a changed word makes another question
TEMPLATE = 3  # questions that differ in the same word from which on they are fillings of a template
QUOTES = "\"'\u201c\u2018\u00ab"
_WORD = regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{M}_']*")
_NUMBER = regex.compile(r"[\p{N}.]+")


class NearPair(NamedTuple):
    """Two questions by their places, the earlier one first, and the template that they fill, if they differ in one word."""

    first: int
    second: int
    template: tuple[str, ...] | None


@dataclass
class NearIndex:
    """Questions to be compared with later ones. near: the least share of words in common; one word may always differ.

    strict: names, numbers and templates are no excuse (for the questions of an evaluation). UserError where rensa is not
    installed.
    """

    near: float
    strict: bool = False
    words: list[list[str]] = field(default_factory=list)
    names: list[set[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rensa = load_rensa()
        self._lsh = self._rensa.RMinHashLSH(threshold=0.5, num_perm=BANDS * ROWS, num_bands=BANDS)

    def add(self, question: str) -> None:
        """Know one more question; its place is how many there were before."""
        self._lsh.insert(len(self.words), self._digest(question))
        self.words.append(tokens(question))
        self.names.append(names_in(question))

    def like(self, question: str) -> list[NearPair]:
        """The known questions that this one is nearly the same as, the earliest first; it has the next place."""
        words, names, place = tokens(question), names_in(question), len(self.words)
        if len(words) < SHORTEST:
            return []
        pairs = (self._pair(other, words, names) for other in sorted(self._lsh.query(self._digest(question))))
        return [NearPair(other, place, template) for other, template in filter(None, pairs)]

    def _pair(self, other: int, words: list[str], names: set[str]) -> tuple[int, tuple[str, ...] | None] | None:
        """A known question that words are nearly the same as, and their common template."""
        theirs = self.words[other]
        most = max(1, int((1 - self.near) * max(len(words), len(theirs)) + 1e-9))
        if len(theirs) < SHORTEST or abs(len(words) - len(theirs)) > most:
            return None
        if Levenshtein.distance(theirs, words, score_cutoff=most) > most:
            return None
        edits = Levenshtein.editops(theirs, words)
        changed = [(theirs[e.src_pos], words[e.dest_pos]) for e in edits if e.tag == "replace"]
        if len(changed) < len(edits) or not changed:
            return other, None
        if not self.strict and all(_other_thing(*pair, self.names[other], names) for pair in changed):
            return None
        at = next(edit.dest_pos for edit in edits)
        return other, (*words[:at], "", *words[at + 1 :]) if len(edits) == 1 else None

    def _digest(self, question: str) -> Any:
        digest = self._rensa.RMinHash(num_perm=BANDS * ROWS, seed=42)
        digest.update(shingles(question))
        return digest


def near_duplicates(questions: Sequence[str], near: float) -> Iterator[tuple[int, int]]:
    """Yield the place of each question that is nearly the same as an earlier one, and the earlier one's place.

    A question that is dropped is none that others are compared with, unless by the template that they fill.
    """
    index, pairs = NearIndex(near), list[NearPair]()
    for question in questions:
        pairs += index.like(question)
        index.add(question)
    fillings: dict[tuple[str, ...], set[int]] = {}
    for pair in pairs:
        if pair.template:
            fillings.setdefault(pair.template, set()).update((pair.first, pair.second))
    dropped: set[int] = set()
    for pair in sorted(pairs, key=lambda pair: (pair.second, pair.first)):
        if pair.template and len(fillings[pair.template]) >= TEMPLATE:
            continue
        if pair.first not in dropped and pair.second not in dropped:
            dropped.add(pair.second)
            yield pair.second, pair.first


def shingles(question: str) -> list[str]:
    """The runs of three letters of a question, each once."""
    key = f" {question_key(question)} "
    return sorted({key[at : at + LETTERS] for at in range(max(1, len(key) - LETTERS + 1))})


def names_in(question: str) -> set[str]:
    """Words that begin with a capital letter and no sentence, or stand in quotation marks, in lower case: names, as far as these
    tell."""
    names = set()
    for match in _WORD.finditer(question):
        before = question[: match.start()].rstrip(" (")
        quoted = before[-1:] in QUOTES and match.start() == len(before) > 0
        before = before.rstrip(f" ({QUOTES}")
        begins = not before or before[-1] in ".?!:\n"
        if quoted or (match[0][0].isupper() and not begins and match[0] != "I"):
            names.add(match[0].casefold())
    return names


def _other_thing(before: str, after: str, names_before: set[str], names_after: set[str]) -> bool:
    """Whether a name stands in the place of a name, or a number in that of a number."""
    named = before in names_before and after in names_after
    return named or bool(_NUMBER.fullmatch(before) and _NUMBER.fullmatch(after))


def load_rensa() -> Any:
    """The package rensa. UserError with the remedy where it is not installed."""
    try:
        import rensa
    except ImportError:
        raise UserError(
            "near duplicates need the package rensa, which is not installed. Install it (pip install rensa), or write "
            "'near: null' under 'questions' and 'leaks' to find equal questions alone."
        ) from None
    return rensa
