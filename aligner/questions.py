"""When two questions are the same, and when nearly the same: one answer for the split, the overlap and the duplicates.

Case, closing punctuation, quotation marks and spacing do not make another question; signs (C++ and C#, 7 + 3 and 7 - 3, <= and
>=, an emoji) and combining marks do. Scripts that are written without spaces are compared by characters.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable

import regex

ALIKE = 0.75  # the share of their word triples that two questions have in common which are nearly the same
NGRAM = 3
_KEPT_BY_NFKC = ("<super>", "<sub>", "<fraction>")  # 2\u2075 is not 25
_UNSPACED = (
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Tai_Tham}"
    r"\p{New_Tai_Lue}\p{Tai_Le}\p{Tai_Viet}\p{Javanese}\p{Balinese}\p{Buginese}]"
)
_LETTER = rf"[[\p{{L}}\p{{N}}]--{_UNSPACED}]"
_OPERATOR = r"[-+*/^=<>\u2212]"
_TOKEN = regex.compile(
    rf"""
    {_UNSPACED}\p{{M}}*                                                 # a character, where there are no spaces
    | (?:__)?{_LETTER}(?:[{_LETTER}\p{{M}}]|_+(?={_LETTER})|(?<=\d)\.(?=\d))*(?:__)?      # a word, a number, an identifier
    | [[\p{{S}}\U000E0020-\U000E007F%&@\\\[\]{{}}*\u2032]--[`\u00b4\u00a8\u00af\u00b8\u00a9\u00ae\u2122$\u2212]]  # signs, emoji
    | [-\u2212](?=\s*[\d(])(?<!\p{{L}}.)                                # minus in front of a number, and not GPT-4
    | (?<=(?:[\d)]|\b\p{{L}})\s*)[-\u2212](?=\s*(?:[\d(]|\p{{L}}\b))     # minus between numbers and single letters
    | (?<![\w)\]])[-\u2212](?=\p{{L}}\b(?!'))                           # -x, and ls -a
    | \u2212
    | (?<!\p{{L}}(?=/\p{{L}}))/                                         # and/or are words
    | \#
    | !(?==) | (?<![^\s(])!(?=[\p{{L}}(]) | (?<=[\d)])!(?=\s*(?:[\d(?]|{_OPERATOR})) | :(?==) # not, factorial, assign
    | (?<=[\p{{L}}\p{{N}}_)\]])\( | (?<={_OPERATOR}\s*)\( | \)(?=\s*{_OPERATOR})     # brackets of calls and formulas
    | (?<=\b\p{{L}})'+(?=\()                                            # derivatives
    | (?<![\w.])\.(?=[\p{{L}}\d])                                        # .5 and .NET
    | (?<=(?<!\w)["'`\u201c\u2018\u00ab])[.,?!;:-]+(?=["'`\u201d\u2019\u00bb])     # a quoted ';' is what is spoken of
    | \$(?=\s?\d[\d.,]*(?![\d.,]*\$))                                   # dollars, and not TeX
    """,
    regex.VERBOSE | regex.V1,
)
_UNSEEN = regex.compile(r"[\p{DI}--[\U000E0020-\U000E007F]]", regex.V1)
_LINE_MARKS = regex.compile(r"^\s*(?:\#{1,6}|[-*])\s+", regex.MULTILINE)  # Markdown's headings and items
_EMPHASIS = regex.compile(r"(?<![\w*)])(\*{1,3})(?=[^\s*])([^*\n]+?)(?<=[^\s*])\1(?![\w*(])")
_THOUSANDS = regex.compile(r"(?<=\d),(?=\d{3}(?!\d))")


# Plain English prose has no sign that changes what is asked: it is split without the pattern above, six times as quickly.
# A set of characters in front, what stands around it behind: `re` looks for a set much more quickly than for alternatives.
_NOT_PLAIN = re.compile(
    r"""[^a-z0-9\s?;:] (?:
          (?<![.,!'"-])
        | (?<=\d[.,!]) | (?<=[.,])(?=\d) | (?<=\.)(?<![\w.]\.)(?=[a-z])
        | (?<=-)(?<![a-z]{2}-) | (?<=-)(?![a-z]{2})
        | (?<=!)(?<!\S!)(?=[a-z])
        | (?<=["'])(?<!\w["'])[.,?!;:-]+["']
    )""",
    re.VERBOSE,
)
_PUNCTUATION = str.maketrans(dict.fromkeys(".,?!;:'\"-", " "))


def question_key(question: str) -> str:
    """What a question is but for its spelling: two with the same key are the same question."""
    if question.isascii() and not _NOT_PLAIN.search(plain := question.lower()):
        return " ".join(plain.translate(_PUNCTUATION).split()) or " ".join(question.split())
    return " ".join(tokens(question)) or " ".join(question.split())


def tokens(question: str) -> list[str]:
    """The words of a question, its characters where the script has no spaces, and the signs that change what is asked."""
    text = _LINE_MARKS.sub(" ", question) if "\n" in question or question.lstrip()[:1] in "#-*" else question
    text = _folded(text)
    if "*" in text:
        text = _EMPHASIS.sub(r"\2", text)
    if "," in text:
        text = _THOUSANDS.sub("", text)
    return ["-" if token == "\u2212" else token for token in _TOKEN.findall(text)]


def _folded(text: str) -> str:
    """Without case, width and what cannot be seen; raised and lowered digits and fractions stay what they are."""
    if text.isascii():
        return text.lower()
    kept = {c for c in set(text) if unicodedata.decomposition(c).startswith(_KEPT_BY_NFKC)}
    if kept:
        parts = regex.split(f"([{regex.escape(''.join(sorted(kept)))}])", text)
        text = "".join(part if part in kept else unicodedata.normalize("NFKC", part) for part in parts)
    else:
        text = unicodedata.normalize("NFKC", text)
    return str(_UNSEEN.sub("", text.casefold()))


class QuestionIndex:
    """Questions to be recognised, also when a few words of them differ (three quarters of their word triples in common)."""

    def __init__(self, questions: Iterable[str]) -> None:
        self.exact: set[str] = set()
        self._texts: list[str] = []
        self._triples: list[set[int]] = []
        self._with: dict[int, list[int]] = {}
        for question in questions:
            self.add(question)

    def add(self, question: str) -> None:
        """Know one more question; one of the same key is known already."""
        key = question_key(question)
        if key in self.exact:
            return
        self.exact.add(key)
        triples = _triples(key)
        for triple in triples:
            self._with.setdefault(triple, []).append(len(self._texts))
        self._texts.append(question)
        self._triples.append(triples)

    def like(self, question: str) -> tuple[bool, str | None]:
        """Whether the question is among them but for its spelling; else one that is nearly the same."""
        key = question_key(question)
        if key in self.exact:
            return True, None
        mine = _triples(key)
        # Who shares three quarters of my triples shares one of any quarter of them, so of those that fewest have.
        rarest = sorted(mine, key=lambda triple: len(self._with.get(triple, ())))
        few = rarest[: len(mine) - math.ceil(ALIKE * len(mine)) + 1]
        for number in dict.fromkeys(number for triple in few for number in self._with.get(triple, ())):
            theirs = self._triples[number]
            if len(mine & theirs) >= ALIKE * len(mine | theirs):
                return False, self._texts[number]
        return False, None


def _triples(key: str) -> set[int]:
    words = key.split(" ")
    return {hash(tuple(words[n : n + NGRAM])) for n in range(len(words) - NGRAM + 1)}
